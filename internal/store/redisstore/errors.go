package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

// awayError is ErrAway with the reason.
type awayError struct{ reason string }

func (e *awayError) Error() string { return "Redis is away: " + e.reason }

// Is reports whether target is ErrAway.
func (e *awayError) Is(target error) bool { return target == store.ErrAway }

// noWritesError is ErrNoWrites with the reason.
type noWritesError struct {
	refusal store.Refusal
	reason  string
}

func (e *noWritesError) Error() string { return "Redis takes no writes: " + e.reason }

// Is reports whether target is ErrNoWrites, or ErrAway: the server is away for writes.
func (e *noWritesError) Is(target error) bool {
	return target == store.ErrNoWrites || target == store.ErrAway
}

// movingSlotError is ErrAway for one slot of a Cluster.
type movingSlotError struct{ reason string }

func (e *movingSlotError) Error() string { return "the slot of a key has no server now: " + e.reason }

// Is reports whether target is ErrAway.
func (e *movingSlotError) Is(target error) bool { return target == store.ErrAway }

var (
	// errResponse omits the response: a garbled one may hold values.
	errResponse = errors.New("Redis sent a response that the client does not understand")
	// errBusy means that there are more calls than Redis or this process can
	// handle. If Redis hangs, the calls that have a connection fail.
	errBusy = errors.New("no connection to Redis became free in time")
)

// silentLog is a log that discards everything.
type silentLog struct{}

// Printf does nothing.
func (silentLog) Printf(context.Context, string, ...any) {}

// judge classifies the error of a call as an outcome for the server, and returns the
// error that may be shown.
func (r *Store) judge(ctx context.Context, err error) (outcome, error) {
	if err == nil {
		return outcomeOK, nil
	}
	shown := r.explain(ctx, err)
	switch {
	case isCallersOwn(shown):
		return outcomeIgnored, shown
	case isAboutSlot(err):
		return outcomeIgnored, &movingSlotError{shown.Error()}
	case refusesWrites(err):
		return outcomeRefused, &noWritesError{refusalOf(err), shown.Error()}
	default:
		return outcomeFailed, shown
	}
}

// explain turns the error of a call into one that may be shown, and distinguishes an end
// by the caller or Close from a failure of Redis.
func (r *Store) explain(ctx context.Context, err error) error {
	deadline, hasDeadline := ctx.Deadline()
	switch {
	case r.ctx.Err() != nil:
		return store.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case hasDeadline && !time.Now().Before(deadline): // its timer comes late
		return context.DeadlineExceeded
	case errors.Is(err, redis.ErrPoolTimeout):
		return errBusy
	}
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx) // or it would use a dead master for a minute
	}
	return errors.New(describe(err))
}

// isCallersOwn reports whether an error is unrelated to the state of Redis.
func isCallersOwn(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, store.ErrClosed) || errors.Is(err, errBusy)
}

// isAboutSlot reports whether an error is about one slot of a Cluster alone, which is
// being moved or has no master.
func isAboutSlot(err error) bool {
	return slices.ContainsFunc([]string{"TRYAGAIN ", "MOVED ", "ASK ", "CLUSTERDOWN Hash slot not served"},
		func(prefix string) bool { return redis.HasErrorPrefix(err, prefix) })
}

// refusesWrites reports whether a server refused to write: one of the writing
// commands of a script, or all of them.
func refusesWrites(err error) bool {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return false
	}
	_, command := cutCommand(answer.Error())
	return refusals[codeOf(answer.Error())] != 0 || slices.Contains([]string{"SET", "PEXPIRE", "DEL", "PUBLISH"}, command)
}

// refusals are the codes of errors that every write gets.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var refusals = map[string]store.Refusal{
	"OOM": store.OutOfMemory, "READONLY": store.ReadOnly, "MISCONF": store.DiskFailed, "NOREPLICAS": store.FewReplicas,
}

// refusalOf returns the reason of an error that refusesWrites recognized. A missing
// permission has a code of its own only in some versions of Redis.
func refusalOf(err error) store.Refusal {
	code := codeOf(err.Error())
	if code == "NOPERM" || code == "ERR" && strings.Contains(err.Error(), "can't run this command") {
		return store.NoRights
	}
	return refusals[code]
}

// codeOf returns the first word of an error response.
func codeOf(text string) string {
	code, _, _ := strings.Cut(text, " ")
	return code
}

// describe describes an error in words. It shows only texts that cannot contain data
// that was sent or read.
func describe(err error) string {
	var network *net.OpError
	var certificate *tls.CertificateVerificationError
	var notTLS tls.RecordHeaderError
	var answer redis.Error
	switch {
	case errors.As(err, &network) && network.Op == "dial":
		return network.Error()
	case isTimeout(err):
		return "Redis did not answer in time"
	case errors.Is(err, redis.ErrPoolTimeout):
		return errBusy.Error()
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return certificate.Error()
	case errors.As(err, &notTLS):
		return notTLS.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "Redis closed the connection"
	case errors.Is(err, redis.Nil):
		return "the sentinels do not know the master"
	case errors.As(err, &answer):
		return describeReply(answer)
	default:
		return errResponse.Error()
	}
}

func isTimeout(err error) bool {
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &network) && network.Timeout()
}

// cutCommand separates an error from the name of its command, which the script has
// appended.
func cutCommand(text string) (rest, command string) {
	text, _, _ = strings.Cut(text, " script: ") // the position in the script
	open := strings.LastIndex(text, " (")
	if open < 0 || !strings.HasSuffix(text, ")") {
		return text, ""
	}
	command = text[open+2 : len(text)-1]
	if !showableWords[strings.ToLower(command)] {
		return text, ""
	}
	return text[:open], command
}

// describeReply describes an error response of Redis, with the command of a script that
// caused it.
func describeReply(answer redis.Error) string {
	text, command := cutCommand(answer.Error())
	text = firstSentence(text)
	if command == "" {
		return "Redis answered " + text
	}
	return "Redis answered to " + command + ": " + text
}

// firstSentence is the first sentence of an error. If the error may repeat data that
// Redis was sent, it ends before that: repeated data is quoted, or follows a comma or
// colon.
func firstSentence(text string) string {
	text, _, _ = strings.Cut(text, ". ")
	if !constantCodes[codeOf(text)] {
		text = untilData(text)
	}
	return strings.TrimSuffix(strings.TrimSpace(text[:min(len(text), 200)]), ".")
}

// constantCodes are the codes of errors that never repeat data.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var constantCodes = map[string]bool{
	"OOM": true, "READONLY": true, "MISCONF": true, "NOREPLICAS": true, "LOADING": true, "BUSY": true,
	"MASTERDOWN": true, "CLUSTERDOWN": true, "TRYAGAIN": true, "NOAUTH": true, "WRONGPASS": true,
}

// showableWords are the quoted words that may be shown: names of commands.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var showableWords = map[string]bool{
	"get": true, "pttl": true, "set": true, "pexpire": true, "del": true, "publish": true, "subscribe": true,
	"eval": true, "evalsha": true, "ping": true, "hello": true, "auth": true, "select": true, "asking": true,
	"cluster|slots": true, "cluster": true, "info": true, "wait": true, "waitaof": true,
}

// untilData is a text up to the first comma, colon or quoted word that is not
// showable.
func untilData(text string) string {
	for at := 0; at < len(text); at++ {
		switch c := text[at]; {
		case c == ',' || c == ':' || c == '`' || c == '"':
			return text[:at]
		case c != '\'' || isWithinWord(text, at):
		default:
			word, _, closed := strings.Cut(text[at+1:], "'")
			if !closed || !showableWords[strings.ToLower(word)] {
				return text[:at]
			}
			at += len(word) + 1
		}
	}
	return text
}

// isWithinWord reports whether an apostrophe is part of a word, as in "can't".
func isWithinWord(text string, at int) bool {
	letter := func(i int) bool { return i >= 0 && i < len(text) && text[i] >= 'a' && text[i] <= 'z' }
	return letter(at-1) && letter(at+1)
}
