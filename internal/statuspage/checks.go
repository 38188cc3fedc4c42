package statuspage

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

// check is a part of the fleet with the findings about it.
type check struct {
	Name     string
	findings []fleet.Finding
}

// checksOf sorts the findings by the parts of the fleet that they are about.
func checksOf(findings []fleet.Finding) []check {
	parts := []struct {
		name string
		ids  []string
	}{
		{"replicas", []string{fleet.ReplicaLost, fleet.ReplicaUnreadable, fleet.ClockDiffers, fleet.VersionsDiffer}},
		{"configuration", []string{fleet.ConfigDiffers, fleet.ConfigRefused}},
		{"store", []string{fleet.StoreAway, fleet.StoreShardAway, fleet.StoreReadOnly, fleet.StoreFull, fleet.StoreRefuses, fleet.StoreEvicts, fleet.StoreVolatile}},
		{"sealing keys", []string{fleet.RingDiffers, fleet.RingRollout}},
		{"revocations", []string{fleet.RevocationsNotLoaded, fleet.RevocationsOld}},
		{"clients", []string{fleet.IdPDown, fleet.IdPRefuses, fleet.IdPThrottles, fleet.SecretInvalid, fleet.SecretMissing, fleet.SecretFallback, fleet.SecretPending, fleet.SecretsDiffer, fleet.KeyOverdue}},
		{"issuers", []string{fleet.KeysOld, fleet.KeysUnusable}},
		{"certificates", []string{fleet.CertificateEnding, fleet.CertificateEnded, fleet.CertificateRejected}},
		{"audit", []string{fleet.AuditFailing, fleet.AuditLost}},
		{"tracing", []string{fleet.TracingFailing}},
	}
	checks := make([]check, 0, len(parts)+1)
	rest := slices.Clone(findings)
	for _, part := range parts {
		one := check{Name: part.name}
		rest = slices.DeleteFunc(rest, func(f fleet.Finding) bool {
			if !slices.Contains(part.ids, f.ID) {
				return false
			}
			one.findings = append(one.findings, f)
			return true
		})
		checks = append(checks, one)
	}
	if len(rest) > 0 {
		checks = append(checks, check{"other", rest})
	}
	return checks
}

// checksText lists the checks, with the reason of each failed one.
func checksText(summary *fleet.Summary, now time.Time, serving bool) string {
	var text strings.Builder
	line := func(name, result string) { fmt.Fprintf(&text, "%-14s %s\n", name, result) }
	if serving {
		line("serving", "ok")
	} else {
		line("serving", "failed: this replica is starting or shutting down")
	}
	for _, one := range checksOf(summary.Findings) {
		if len(one.findings) == 0 {
			line(one.Name, "ok")
		}
		for _, f := range one.findings {
			line(one.Name, fmt.Sprintf("failed: %s (%s, %s)", escape.Text(f.Message), f.Severity, since(now, f.Since)))
		}
	}
	text.WriteString("\nA replica is ready if it serves. Load balancers ignore the other checks: they describe the whole fleet.\n")
	return text.String()
}

// since describes when something began.
func since(now, began time.Time) string {
	if d := now.Sub(began); d >= time.Second {
		return "for " + fleet.Span(d)
	}
	return "just now"
}
