package app_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/doctor"
)

// live runs the live checks of the parts that an IdP or a file is behind. It returns the
// details of those that passed, and the messages of errors, by subject.
func live(t *testing.T, config *config.Config, transport http.RoundTripper, mint bool) (passed, failed map[string]string) {
	t.Helper()
	passed, failed = map[string]string{}, map[string]string{}
	report := doctor.Run(t.Context(), "sample.yaml", config, doctor.Options{Mint: mint, Transport: transport})
	for _, pass := range report.Passed {
		if strings.HasPrefix(pass.Subject, "clients.") || strings.HasPrefix(pass.Subject, "issuers ") || pass.Subject == "listen.tls" {
			passed[pass.Subject] = pass.Detail
		}
	}
	for _, f := range report.Findings {
		if f.Severity == doctor.Error {
			failed[f.Subject] += f.Message
		}
		if f.Message == "" || f.Action == "" {
			t.Errorf("%+v", f)
		}
	}
	return passed, failed
}
