package policyreview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// maxBadLines bounds the bad lines that Log describes. All are counted.
const maxBadLines = 20

// Reasons for which a line has no request that a configuration could decide about.
const (
	noRequest     = "no request"
	lostLines     = "lines that the broker could not write"
	olderForm     = "of another format of the audit log"
	onBehalf      = "for tokens on behalf of users, of whose tokens the log does not name the audiences"
	unknownKind   = "of an event, an outcome or an action that this version does not know"
	withoutCaller = "without a caller"
	onlyCounted   = "denials and rejections that the log only counts"
)

// Log has the distinct requests of audit logs. Its size depends on their number, not on
// the number of lines.
type Log struct {
	// Lines is the number of lines, and Bad the number of those that are not lines of an
	// audit log.
	Lines, Bad uint64
	// BadLines describes the first bad lines, each with file and line.
	BadLines []string
	// First and Last are the times of the earliest and the latest request.
	First, Last time.Time

	requests map[string]*recorded
	order    []*recorded
	// others counts the events that are no requests, by name, and unjudged those that may be
	// requests and cannot be judged, by reason.
	others, unjudged map[string]uint64
	// configs are the digests of the configurations under which the lines were written.
	configs map[string]bool
	key     []byte // reused
}

// recorded is a request in the log, which occurred count times.
type recorded struct {
	kind                       Kind
	outcome                    audit.Outcome
	caller, client             string // client also of an Admin
	audiences                  []string
	resources, scopes, granted []string
	issuer                     string
	action                     policy.Action
	// tooMuch: the broker denied the token because of the scopes that the IdP granted,
	// which the log does not name.
	tooMuch bool

	count uint64
	last  time.Time
}

// allowed reports whether the policy allowed the request.
func (r *recorded) allowed() bool { return r.outcome != audit.Denied }

// NewLog returns an empty Log.
func NewLog() *Log {
	return &Log{requests: map[string]*recorded{}, others: map[string]uint64{}, unjudged: map[string]uint64{}, configs: map[string]bool{}}
}

// Read adds the requests of a log. name is the name of the log in messages.
func (l *Log) Read(name string, from io.Reader) error {
	lines, err := audit.NewReader(from)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", name, err)
	}
	for {
		line, err := lines.Next()
		bad, isBad := errors.AsType[*audit.LineError](err)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case isBad:
			l.Lines++
			if l.Bad++; l.Bad <= maxBadLines {
				l.BadLines = append(l.BadLines, fmt.Sprintf("%s:%d: %s", name, bad.Number, bad.Message))
			}
		case err != nil:
			return fmt.Errorf("%s cannot be read: %w", name, err)
		default:
			l.Lines++
			l.add(&line)
		}
	}
}

func (l *Log) add(line *audit.Entry) {
	if line.ConfigSHA256 != "" {
		l.configs[line.ConfigSHA256] = true
	}
	r, reason := newRecorded(line)
	if reason != "" {
		if reason == noRequest {
			l.others[string(line.Event)] += line.Times()
		} else {
			l.unjudged[reason] += line.Times()
		}
		return
	}
	l.key = r.appendKey(l.key[:0])
	known := l.requests[string(l.key)]
	if known == nil {
		known = &r
		l.requests[string(l.key)] = known
		l.order = append(l.order, known)
	}
	known.count += line.Times()
	if line.Time.After(known.last) {
		known.last = line.Time
	}
	if l.First.IsZero() || line.Time.Before(l.First) {
		l.First = line.Time
	}
	if line.Time.After(l.Last) {
		l.Last = line.Time
	}
}

// newRecorded returns the request in a line, or the reason for which it has none.
func newRecorded(line *audit.Entry) (recorded, string) {
	r := recorded{
		outcome: line.Outcome, caller: line.Caller, client: line.Client, audiences: line.Audiences, resources: line.Resources,
		scopes: sorted(line.Scopes), granted: sorted(line.GrantedScopes), issuer: line.Issuer,
	}
	if !line.Current() {
		return r, olderForm
	}
	var outcomes []audit.Outcome
	switch line.Event {
	case audit.Token:
		if line.Issuer != "" { // of the user's token
			return r, onBehalf
		}
		r.kind, outcomes = Get, []audit.Outcome{audit.OK, audit.Denied}
		r.tooMuch = line.Outcome == audit.Denied && line.Reason != apierror.ReasonNotEntitled && line.Reason != ""
	case audit.Verification:
		r.kind, outcomes = Verify, []audit.Outcome{audit.Active, audit.Rejected, audit.Undecided, audit.Denied}
		r.granted = nil
	case audit.Admin:
		r.kind, outcomes = Admin, []audit.Outcome{audit.OK, audit.Denied, audit.Refused, audit.Failed}
		r.action = policy.Action(line.Action)
		r.audiences, r.resources, r.scopes, r.granted, r.issuer = nil, nil, nil, nil, ""
		if r.allowed() {
			r.outcome = audit.OK
		}
	case audit.Start, audit.Stop, audit.Reload, audit.Rotation, audit.Call, audit.Connection:
		return r, noRequest
	case audit.Lost:
		return r, lostLines
	default:
		return r, unknownKind
	}
	switch {
	case line.Count > 0 && !r.allowed() && r.client == "" && r.action == "" && r.audiences == nil && r.scopes == nil && line.Reason == "",
		line.Count > 0 && r.kind == Verify && line.Outcome != audit.Active,
		line.Count > 0 && r.kind == Admin && line.Action == "":
		return r, onlyCounted
	case !slices.Contains(outcomes, line.Outcome), r.kind == Admin && !slices.Contains(policy.Actions(), r.action), r.kind == Get && r.client == "":
		return r, unknownKind
	case r.caller == "":
		return r, withoutCaller
	}
	return r, ""
}

// appendKey appends a text that only the same request has. Texts have their length before
// them.
func (r *recorded) appendKey(dst []byte) []byte {
	text := func(s string) { dst = append(binary.AppendUvarint(dst, uint64(len(s))), s...) }
	texts := func(list []string) {
		dst = binary.AppendUvarint(dst, uint64(len(list)))
		for _, s := range list {
			text(s)
		}
	}
	for _, s := range []string{string(r.kind), string(r.outcome), r.caller, r.client, r.issuer, string(r.action)} {
		text(s)
	}
	for _, list := range [][]string{r.audiences, r.resources, r.scopes, r.granted} {
		texts(list)
	}
	if r.tooMuch {
		dst = append(dst, 1)
	}
	return dst
}

// Requests returns the number of requests that the log has, repeated ones included.
func (l *Log) Requests() (count uint64) {
	for _, r := range l.order {
		count += r.count
	}
	return count
}
