package policyreview

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// printer writes lines and keeps the first error.
type printer struct {
	out io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format, args...)
	}
}

var marks = map[Effect]string{Gain: "+", Loss: "-", Change: "~"} //nolint:gochecknoglobals // a table that nothing writes

// Text writes the differences for people: "-" marks a loss, "+" a gain, and "~" another
// change.
func (c *Comparison) Text(out io.Writer) error {
	p := &printer{out: out}
	if c.Equal() {
		p.printf("no difference: %s allows the same requests as %s\n", c.updated.Name, c.old.Name)
		return p.err
	}
	p.printf("%s\n", c.summary())
	for _, pair := range c.pairs {
		c.callerText(p, pair)
	}
	c.otherText(p)
	return p.err
}

// summary counts the callers that the differences concern.
func (c *Comparison) summary() string {
	callers := map[Effect]map[string]bool{Gain: {}, Loss: {}, Change: {}}
	for i := range c.Permissions {
		d := &c.Permissions[i]
		callers[d.Effect][d.Caller] = true
	}
	parts := []string{
		count(len(callers[Loss]), "caller loses", "callers lose") + " permissions",
		count(len(callers[Gain]), "gains", "gain"),
	}
	if n := len(callers[Change]); n > 0 {
		parts = append(parts, count(n, "gets other defaults", "get other defaults"))
	}
	if n := len(c.Identities); n > 0 {
		parts = append(parts, count(n, "difference of identities", "differences of identities"))
	}
	if n := len(c.Settings); n > 0 {
		parts = append(parts, count(n, "difference of listeners and gateway rules", "differences of listeners and gateway rules"))
	}
	return fmt.Sprintf("%s -> %s: %s", c.old.Name, c.updated.Name, strings.Join(parts, ", "))
}

func count[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (c *Comparison) callerText(p *printer, of pair) {
	name, note := of.updated, ""
	switch {
	case of.updated == "":
		name, note = of.old, " (removed)"
	case of.old == "":
		note = " (new)"
	case of.old != of.updated:
		note = " (renamed from " + of.old + ")"
	}
	var lines []string
	for _, id := range c.Identities {
		if id.Caller == name {
			lines = append(lines, fmt.Sprintf("~ %s -> %s", id.Before, id.After))
		}
	}
	for i := range c.Permissions {
		if d := &c.Permissions[i]; d.Caller == name {
			lines = append(lines, marks[d.Effect]+" "+d.String())
		}
	}
	if len(lines) == 0 && note == "" {
		return
	}
	p.printf("\ncaller %s%s\n", name, note)
	for _, line := range lines {
		p.printf("  %s\n", line)
	}
}

// otherText writes the differences that are not those of one caller.
func (c *Comparison) otherText(p *printer) {
	var lines []string
	for _, id := range c.Identities {
		if id.Who != "" {
			lines = append(lines, fmt.Sprintf("~ %s: %s -> %s", id.Who, namedCaller(id.Before), namedCaller(id.After)))
		}
	}
	for _, s := range c.Settings {
		switch {
		case s.Before == "":
			lines = append(lines, fmt.Sprintf("+ %s: %s", s.Key, s.After))
		case s.After == "":
			lines = append(lines, fmt.Sprintf("- %s: %s", s.Key, s.Before))
		default:
			lines = append(lines, fmt.Sprintf("~ %s: %s -> %s", s.Key, s.Before, s.After))
		}
	}
	if len(lines) == 0 {
		return
	}
	p.printf("\nidentities, listeners and gateway rules\n")
	for _, line := range lines {
		p.printf("  %s\n", line)
	}
}

func namedCaller(name string) string {
	if name == "" {
		return "no caller"
	}
	return "caller " + name
}

// String describes the requests that make the difference, and the lines of their grants.
func (d *Difference) String() string {
	var text string
	switch d.Kind {
	case Get:
		text = "tokens of client " + d.Client
	case Exchange:
		text = "tokens of client " + d.Client + " on behalf of users"
		if len(d.UserTokens) > 0 {
			text += " with tokens of " + strings.Join(d.UserTokens, " or ")
		}
	case Verify:
		text = "verification of tokens of issuer " + d.Issuer
	case Admin:
		text = "admin " + strings.Join(d.Actions, ", ")
		switch {
		case len(d.Clients) > 0:
			text += " on clients " + strings.Join(d.Clients, ", ")
		case slices.ContainsFunc(d.Actions, func(action string) bool { return !clientless(policy.Action(action)) }):
			text += " on any client"
		}
	}
	var details []string
	for name, values := range map[string][]string{"1audiences ": d.Audiences, "2resources ": d.Resources, "3scopes ": d.Scopes} {
		if len(values) > 0 {
			details = append(details, name+anyOf(values))
		}
	}
	slices.Sort(details)
	for i := range details {
		details[i] = details[i][1:] // without the digit
	}
	if len(details) > 0 {
		text += ": " + strings.Join(details, "; ")
	}
	if d.Together {
		text += " in one request"
	}
	if len(d.Omits) > 0 {
		text += fmt.Sprintf(", if the request names no %s: %s -> %s", strings.Join(d.Omits, " and no "), d.Before, d.After)
	}
	if len(d.Lines) > 0 {
		text += "  (" + strings.Join(d.Lines, ", ") + ")"
	}
	return text
}

func anyOf(values []string) string {
	if slices.Equal(values, []string{policy.Any}) {
		return "any"
	}
	return strings.Join(values, ", ")
}

// RequestsText writes the requests of a log that the file decides otherwise than the log
// has them.
func RequestsText(out io.Writer, name string, requests []Request) error {
	p := &printer{out: out}
	for _, group := range []struct {
		title string
		has   func(r *Request) bool
	}{
		{"recorded requests that " + name + " denies", func(r *Request) bool { return r.Recorded == Allowed && r.After == Denied }},
		{"recorded requests that " + name + " may deny", func(r *Request) bool { return r.Recorded == Allowed && r.After == Depends }},
		{"recorded denials that " + name + " allows", func(r *Request) bool { return r.Recorded == Denied && r.After == Allowed }},
		{"recorded denials that " + name + " may allow", func(r *Request) bool { return r.Recorded == Denied && r.After == Depends }},
	} {
		var total uint64
		var members []*Request
		for i := range requests {
			if r := &requests[i]; group.has(r) {
				total += r.Count
				members = append(members, r)
			}
		}
		if len(members) == 0 {
			continue
		}
		p.printf("\n%s: %d\n", group.title, total)
		for _, r := range members {
			r.text(p)
		}
	}
	return p.err
}

func (r *Request) text(p *printer) {
	p.printf("  %6dx caller %s: %s\n", r.Count, r.Caller, r.describe())
	details := []string{"last " + instant(r.Last)}
	if r.Why != "" {
		details = append(details, r.Why)
	}
	switch {
	case r.Recorded == Allowed && len(r.Lines) > 0:
		details = append(details, "allowed by "+strings.Join(r.Lines, ", "))
	case r.Recorded == Allowed && r.Before == Denied && r.After == Denied:
		details = append(details, "an earlier configuration allowed it")
	}
	p.printf("          %s\n", strings.Join(details, "; "))
}

func (r *Request) describe() string {
	words := []string{"tokens of client " + r.Client}
	switch r.Kind {
	case Verify:
		words = []string{"verification of a token of issuer " + r.Issuer}
		if r.Issuer == "" {
			words = []string{"verification of a token"}
		}
	case Admin:
		words = []string{"admin " + r.Action}
		if r.Client != "" {
			words = append(words, "client "+r.Client)
		}
	case Get:
	}
	add := func(name string, values []string) {
		if len(values) > 0 {
			words = append(words, name+" "+strings.Join(values, ", "))
		}
	}
	add("audiences", r.Audiences)
	add("resources", r.Resources)
	add("scopes", r.Scopes)
	add("granted scopes", r.GrantedScopes)
	return strings.Join(words, "; ")
}

// instant formats a time with seconds.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Text writes which grants were needed and which were not.
func (u *Usage) Text(out io.Writer) error {
	p := &printer{out: out}
	var unused, used, unknown, onBehalf []*GrantUsage
	for i := range u.Grants {
		switch g := &u.Grants[i]; {
		case g.Unknown && g.Kind == Exchange:
			onBehalf = append(onBehalf, g)
		case g.Unknown:
			unknown = append(unknown, g)
		case g.Count == 0:
			unused = append(unused, g)
		default:
			used = append(used, g)
		}
	}
	p.printf("%s: %d of %d grants were never needed\n", u.file.Name, len(unused), len(u.Grants))
	group := func(title string, grants []*GrantUsage) {
		if len(grants) > 0 {
			p.printf("\n%s\n", title)
		}
		for _, g := range grants {
			p.printf("  %s  role %s: %s\n", g.Line, g.Role, g.Grant)
			if g.Count > 0 {
				p.printf("      %s, last %s, by %s\n", count(g.Count, "request", "requests"), instant(g.Last), strings.Join(g.Callers, ", "))
			}
			if len(g.Unused) > 0 {
				p.printf("      never needed: %s\n", strings.Join(g.Unused, ", "))
			}
		}
	}
	group("never needed", unused)
	group("unknown: the log has no accepted verifications (set audit.verifications: all)", unknown)
	group("unknown: the log does not have the audiences of the tokens of users", onBehalf)
	group("needed", used)
	if len(u.Roles) > 0 {
		p.printf("\ncallers that never needed a role\n")
	}
	for _, r := range u.Roles {
		note := ""
		if !r.Seen {
			note = "  (no request of this caller in the log)"
		}
		p.printf("  %s  caller %s: role %s%s\n", r.Line, r.Caller, r.Role, note)
	}
	return p.err
}

// Summary is what a log contributed to an analysis.
type Summary struct {
	Lines    uint64    `json:"lines"`
	BadLines uint64    `json:"bad_lines"`
	Requests uint64    `json:"requests"`
	First    time.Time `json:"first,omitzero"`
	Last     time.Time `json:"last,omitzero"`
	// OtherEvents counts the events that are no requests, by name.
	OtherEvents map[string]uint64 `json:"other_events"`
	// NotJudged counts the events that may be requests, but about which nothing can be
	// decided, by reason.
	NotJudged map[string]uint64 `json:"not_judged"`
	// OtherConfig: the log has starts and reloads of brokers, none of them with this file.
	OtherConfig bool `json:"other_config"`
}

// Summary describes the log. file is the configuration under which it was probably
// written, and undecidable the count of Replay.
func (l *Log) Summary(file *File, undecidable uint64) Summary {
	s := Summary{Lines: l.Lines, BadLines: l.Bad, Requests: l.Requests(), First: l.First, Last: l.Last, OtherEvents: l.others, NotJudged: maps.Clone(l.unjudged)}
	if undecidable > 0 {
		s.NotJudged["requests about which the log has too little"] = undecidable
	}
	s.OtherConfig = len(l.configs) > 0 && !l.configs[fmt.Sprintf("%x", file.config.Digest)]
	return s
}

// Text writes the summary. name is the name of the file of which OtherConfig speaks.
func (s *Summary) Text(out io.Writer, name string) error {
	p := &printer{out: out}
	p.printf("\nlog: %d lines, %d requests", s.Lines, s.Requests)
	if s.Requests > 0 {
		p.printf(" from %s to %s", instant(s.First), instant(s.Last))
	}
	p.printf("\n")
	var others []string
	for _, event := range slices.Sorted(maps.Keys(s.OtherEvents)) {
		others = append(others, fmt.Sprintf("%s %d", event, s.OtherEvents[event]))
	}
	if len(others) > 0 {
		p.printf("  other events: %s\n", strings.Join(others, ", "))
	}
	for _, reason := range slices.Sorted(maps.Keys(s.NotJudged)) {
		p.printf("  not judged: %d %s\n", s.NotJudged[reason], reason)
	}
	if s.BadLines > 0 {
		p.printf("  not judged: %d bad lines\n", s.BadLines)
	}
	if s.OtherConfig {
		p.printf("  no broker in the log used %s as it is now: the requests were decided by other configurations\n", name)
	}
	return p.err
}
