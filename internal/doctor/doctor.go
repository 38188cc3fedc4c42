// Package doctor tries everything that a configuration file names, and looks for settings
// that will fail later or hardly do what they were meant to do.
//
// The checks are independent: each has its own time limit, and none hides another.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Severity is how urgent a finding is.
type Severity int

// The severities.
const (
	// Note: nothing needs to be done, or something could not be checked.
	Note Severity = iota + 1
	// Warning: something will fail later, or is probably not intended.
	Warning
	// Error: something does not work.
	Error
)

func (s Severity) String() string {
	return [...]string{Note: "note", Warning: "warning", Error: "error"}[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is something that an operator should look at. It never contains a secret.
type Finding struct {
	Severity Severity `json:"severity"`
	// ID is stable. Where a running fleet has the same finding, it has the same ID.
	ID string `json:"id"`
	// Subject is what was checked, such as "clients.orders: token endpoint".
	Subject string `json:"subject"`
	// File and Line are the place in the configuration; empty and 0 if the finding is not
	// about the configuration.
	File string `json:"file"`
	Line int    `json:"line"`
	// Message is the fact, and Action what to do.
	Message string `json:"message"`
	Action  string `json:"action"`
}

// Pass is a check without a finding that needs an action.
type Pass struct {
	Subject string `json:"subject"`
	Detail  string `json:"detail"`
}

// Report is the result of all checks.
type Report struct {
	// Findings are sorted by severity, errors first.
	Findings []Finding
	Passed   []Pass
	// Checks counts the checks that ran.
	Checks int
}

// Count returns the number of findings of a severity.
func (r *Report) Count(severity Severity) (n int) {
	for i := range r.Findings {
		if r.Findings[i].Severity == severity {
			n++
		}
	}
	return n
}

// Options are what the checks need in addition to the configuration.
type Options struct {
	// Mint: also request a token for each client. Some IdPs bill for those.
	Mint bool
	// Fleet reads the status of the running fleet. Nil: it is not compared.
	Fleet func(ctx context.Context) (Fleet, error)
	// Limit is how long a check may take. Zero: DefaultLimit.
	Limit time.Duration
	// Now is the clock of this machine, and Transport replaces all connections to IdPs, for
	// tests.
	Now       func() time.Time
	Transport http.RoundTripper
}

// DefaultLimit is the time limit of each check.
const DefaultLimit = 15 * time.Second

// atOnce is the number of checks that run at the same time.
const atOnce = 8

// Run checks a configuration that was read from file.
func Run(ctx context.Context, file string, cfg *config.Config, options Options) Report {
	if options.Limit == 0 {
		options.Limit = DefaultLimit
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	d := &doctor{file: file, config: cfg, Options: options}
	d.files()
	d.certificates()
	d.policy()
	d.live()
	if options.Fleet != nil {
		d.add("fleet", nil, func(ctx context.Context, r *result) { r.compare(ctx) })
	}
	report := d.run(ctx)
	if d.probe != nil {
		d.probe.Close()
	}
	return report
}

// doctor collects the checks, and then runs them.
type doctor struct {
	Options

	file   string
	config *config.Config
	probe  *app.Probe // nil: the configuration cannot be assembled at all
	checks []check
}

// check is one check of a subject, which keys lead to in the configuration. Without keys
// it is not about the configuration.
type check struct {
	subject string
	keys    []any
	run     func(ctx context.Context, r *result)
}

func (d *doctor) add(subject string, keys []any, run func(ctx context.Context, r *result)) {
	d.checks = append(d.checks, check{subject, keys, run})
}

// run runs all checks and collects their results in the order of the checks.
func (d *doctor) run(ctx context.Context) Report {
	results := make([]*result, len(d.checks))
	free := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i := range d.checks {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			results[i] = d.runOne(ctx, &d.checks[i])
		})
	}
	running.Wait()
	report := Report{Findings: []Finding{}, Passed: []Pass{}, Checks: len(d.checks)}
	for _, r := range results {
		report.Findings = append(report.Findings, r.findings...)
		report.Passed = append(report.Passed, r.passed...)
	}
	slices.SortStableFunc(report.Findings, func(a, b Finding) int { return int(b.Severity - a.Severity) })
	return report
}

// runOne runs a check. It abandons a check that ignores its time limit.
func (d *doctor) runOne(ctx context.Context, c *check) *result {
	ctx, cancel := context.WithTimeout(ctx, d.Limit)
	defer cancel()
	done := make(chan *result, 1)
	go func() {
		r := &result{doctor: d, check: c}
		c.run(ctx, r)
		done <- r
	}()
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
	}
	const grace = time.Second // most checks notice the end, and say more
	select {
	case r := <-done:
		return r
	case <-time.After(grace):
	}
	r := &result{doctor: d, check: c}
	r.report(Error, "check-timeout", fmt.Sprintf("the check did not end within %v", d.Limit), "Check the network on the way to it, and try again.")
	return r
}

// result collects what one check finds.
type result struct {
	*doctor
	check    *check
	findings []Finding
	passed   []Pass
}

// report adds a finding at the place of the check.
func (r *result) report(severity Severity, id, message, action string) {
	r.reportAt(severity, id, r.check.keys, message, action)
}

// reportAt adds a finding at another place of the configuration.
func (r *result) reportAt(severity Severity, id string, keys []any, message, action string) {
	f := Finding{Severity: severity, ID: id, Subject: r.check.subject, Message: oneLine(message), Action: oneLine(action)}
	if keys != nil {
		f.File, f.Line = r.file, r.config.LineNear(keys...)
	}
	r.findings = append(r.findings, f)
}

// fail reports an error, if there is one, and otherwise that the check passed.
func (r *result) fail(id string, err error, action, detail string) {
	switch {
	case err == nil:
		r.pass(detail)
	case errors.Is(err, context.DeadlineExceeded):
		r.report(Error, id, fmt.Sprintf("no answer within %v: %v", r.Limit, err), action)
	default:
		r.report(Error, id, err.Error(), action)
	}
}

func (r *result) pass(detail string) {
	r.passed = append(r.passed, Pass{r.check.subject, oneLine(detail)})
}

// oneLine joins the lines of an error.
func oneLine(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ") }

// files reports the warnings of the configuration file, and files with secrets that others
// can read or that are empty.
func (d *doctor) files() {
	problems := func(severity Severity, id string, problems func() []yamlconf.Problem) func(context.Context, *result) {
		return func(_ context.Context, r *result) {
			for _, problem := range problems() {
				subject, rest, _ := strings.Cut(problem.Message, ": ")
				message, action, ok := strings.Cut(rest, ": ")
				if !ok {
					action = "Correct the configuration, unless this is intended."
				}
				r.findings = append(r.findings, Finding{
					Severity: severity, ID: id, Subject: subject, File: problem.File, Line: problem.Line, Message: oneLine(message), Action: sentence(action),
				})
			}
		}
	}
	d.add("configuration", nil, problems(Warning, "config-doubtful", func() []yamlconf.Problem { return d.config.Warnings }))
	d.add("permissions of secret files", nil, problems(Warning, "secret-file-exposed", d.config.ExposedFiles))
	d.add("content of secret files", nil, problems(Error, "secret-file-empty", d.config.EmptyFiles))
}

// sentence begins with a capital and ends with a period.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + strings.TrimSuffix(text[1:], ".") + "."
}

// logger discards the log of the probe: findings are reported instead.
func logger() *slog.Logger { return slog.New(slog.DiscardHandler) }
