package statuspage

import (
	"cmp"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

const (
	// maxRows is the maximum number of rows of a section; rows with problems come first.
	maxRows = 100
	// notableClock is the difference between two clocks from which on it is shown. Smaller
	// ones are within the error of the measurement.
	notableClock = 3 * time.Second
	runbook      = "https://github.com/cezzis/tokenbroker/blob/main/docs/runbook.md#"
)

// level is how well a thing works. It is also its class in the style sheet.
type level string

const (
	plain level = ""
	good  level = "ok"
	warn  level = "warning"
	bad   level = "critical"
)

// view is the content of the page.
type view struct {
	CSS      template.CSS
	Refresh  int // seconds
	Level    level
	Verdict  string
	Replica  string
	Version  string
	Time     string
	Findings []finding
	Sections []section
}

type finding struct {
	Level   level
	Message string
	Since   string
	Action  []phrase
	ID      string
	Runbook string
}

// phrase is a part of a sentence.
type phrase struct {
	Text string
	Code bool
}

type section struct {
	Title   string
	Summary string
	Rows    []row
	More    string
}

type row struct {
	Name  string
	State string
	Level level
	Facts []string
}

// newView returns the page at the given time.
func newView(s *fleet.Summary, at time.Time, serving bool) view {
	r := reader{Summary: s, now: at, alive: aliveRecords(s)}
	v := view{
		CSS: template.CSS(css), Refresh: 10, //nolint:gosec // the style sheet is embedded in the binary
		Replica: shown(s.Replicas[0].Replica.ID), Version: shown(s.Replicas[0].Replica.Version), Time: at.UTC().Format("2006-01-02 15:04:05 UTC"),
		Sections: []section{r.replicas(), r.store(), r.clients(), r.issuers(), r.certificates(), r.records()},
	}
	v.Level, v.Verdict = verdict(s, serving)
	for _, f := range s.Findings {
		v.Findings = append(v.Findings, finding{
			Level: levelOf(f.Severity), Message: escape.Text(f.Message), Since: fmt.Sprintf("%s, since %s", since(at, f.Since), clock(f.Since, at)),
			Action: phrases(f.Action), ID: f.ID, Runbook: runbook + f.Runbook,
		})
	}
	return v
}

// verdict says in one sentence how the fleet does.
func verdict(s *fleet.Summary, serving bool) (level, string) {
	critical := 0
	for _, f := range s.Findings {
		if f.Severity == fleet.Critical {
			critical++
		}
	}
	warnings := len(s.Findings) - critical
	switch {
	case critical > 0 && warnings > 0:
		return bad, fmt.Sprintf("%s action now, %s attention.", needs(critical, "problem"), needs(warnings, "warning"))
	case critical > 0:
		return bad, needs(critical, "problem") + " action now."
	case !serving:
		return warn, "This replica is starting or shutting down."
	case warnings > 0:
		return warn, "Calls are served, but " + needs(warnings, "warning") + " attention."
	default:
		return good, "Everything works."
	}
}

func needs(n int, noun string) string { return fleet.Count(n, noun+" needs", noun+"s need") }

func levelOf(s fleet.Severity) level {
	if s == fleet.Critical {
		return bad
	}
	return warn
}

// phrases splits a sentence at its commands, which are in backticks.
func phrases(text string) (all []phrase) {
	code := false
	for part := range strings.SplitSeq(text, "`") {
		if part != "" {
			all = append(all, phrase{part, code})
		}
		code = !code
	}
	return all
}

// shown returns a name without characters that could mislead a reader.
func shown(name fleet.Name) string { return escape.Text(string(name)) }

// clock writes a time of the last day as such, and others with their day.
func clock(t, now time.Time) string {
	if now.Sub(t) < 20*time.Hour {
		return t.UTC().Format("15:04:05 UTC")
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// reader turns a summary into sections.
type reader struct {
	*fleet.Summary

	now   time.Time
	alive []*fleet.Record
}

func aliveRecords(s *fleet.Summary) (all []*fleet.Record) {
	for _, m := range s.Replicas {
		if m.Presence == fleet.Alive && m.Record != nil {
			all = append(all, m.Record)
		}
	}
	return all
}

// found returns the level of the worst finding with one of the ids about a subject.
func (r *reader) found(subject fleet.Name, ids ...string) level {
	for _, f := range r.Findings { // the worst first
		if f.Subject == subject && slices.Contains(ids, f.ID) {
			return levelOf(f.Severity)
		}
	}
	return plain
}

func (r *reader) ago(t time.Time) string { return fleet.Span(max(0, r.now.Sub(t))) + " ago" }

// limited sorts rows with problems to the front, and cuts the list.
func (s section) limited() section {
	slices.SortStableFunc(s.Rows, func(a, b row) int { return cmp.Compare(rank(a.Level), rank(b.Level)) })
	if more := len(s.Rows) - maxRows; more > 0 {
		s.More = fmt.Sprintf("%d more are not shown here.", more)
		s.Rows = s.Rows[:maxRows]
	}
	return s
}

func rank(l level) int { return slices.Index([]level{bad, warn, good, plain}, l) }
