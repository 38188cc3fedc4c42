package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

// The limits of certificates that end.
const (
	certificateWarning = 30 * 24 * time.Hour
	certificateError   = 7 * 24 * time.Hour
	// A certificate with a shorter life is renewed by a program, and is judged by the fifth
	// of its life that is left.
	certificateShort = 3 * 24 * time.Hour
	// A file with more authorities is a collection, of which some always end.
	authorityBundle = 8
)

// certificates checks the ends of all certificates in files.
func (d *doctor) certificates() {
	for _, file := range d.config.CertificateFiles() {
		d.add(file.Key, nil, func(_ context.Context, r *result) { r.certificateFile(&file) })
	}
}

func (r *result) certificateFile(file *config.CertificateFile) {
	report := func(severity Severity, id, message, action string) {
		r.findings = append(r.findings, Finding{
			Severity: severity, ID: id, Subject: file.Key, File: r.file, Line: file.Line, Message: message, Action: action,
		})
	}
	all, err := readCertificates(file.Path)
	if err != nil {
		report(Error, "certificate-unreadable", err.Error(), "Correct the path, the content or the permissions of the file.")
		return
	}
	if file.CA {
		all = latestOfEach(all)
	}
	first := slices.MinFunc(all, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	name, now := cmp.Or(first.Subject.String(), "without a name"), r.Now()
	text := fmt.Sprintf("the certificate %q in %s", name, file.Path)
	severity, left := ending(first, now), first.NotAfter.Sub(now)
	if file.CA && len(all) > authorityBundle {
		severity = min(severity, Warning)
	}
	action := "Renew it and replace the file: the broker reads it without a restart."
	if file.CA {
		action = "Add the CA that replaces it to the file: the broker reads it without a restart."
	}
	switch {
	case left <= 0:
		report(severity, fleet.CertificateEnded, fmt.Sprintf("%s expired on %s", text, day(first.NotAfter)), action)
	case first.NotBefore.After(now):
		report(Error, "certificate-future", fmt.Sprintf("%s is not valid before %s", text, first.NotBefore.UTC().Format(time.RFC3339)), "Check the clock of this machine, or use a certificate that is valid now.")
	case severity > Note:
		report(severity, fleet.CertificateEnding, fmt.Sprintf("%s expires on %s, in %s", text, day(first.NotAfter), days(left)), action)
	default:
		r.passed = append(r.passed, Pass{file.Key, fmt.Sprintf("%q until %s", name, day(first.NotAfter))})
	}
}

// ending returns how urgent the end of a certificate is. Note: it is not.
func ending(c *x509.Certificate, now time.Time) Severity {
	left, life := c.NotAfter.Sub(now), c.NotAfter.Sub(c.NotBefore)
	switch {
	case left <= 0:
		return Error
	case life <= certificateShort && left > life/fleet.CertificateShare:
		return Note
	case life <= certificateShort:
		return Warning
	case left < certificateError:
		return Error
	case left < certificateWarning:
		return Warning
	default:
		return Note
	}
}

// latestOfEach returns the last certificate of each name: the others end when an authority
// is replaced.
func latestOfEach(all []*x509.Certificate) (latest []*x509.Certificate) {
	byName := map[string]int{}
	for _, c := range all {
		i, ok := byName[string(c.RawSubject)]
		switch {
		case !ok:
			byName[string(c.RawSubject)] = len(latest)
			latest = append(latest, c)
		case c.NotAfter.After(latest[i].NotAfter):
			latest[i] = c
		}
	}
	return latest
}

// readCertificates returns the certificates in a file in PEM. An error does not quote the
// file, which may contain a key.
func readCertificates(path string) (all []*x509.Certificate, err error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s contains a certificate that cannot be parsed", path)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		err = errors.New(path + " contains no certificate in PEM form")
	}
	return all, err
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return d.Round(time.Minute).String()
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// listener opens the certificate and the authorities of the listeners as the broker does.
func (r *result) listener(ctx context.Context) {
	status, err := r.probe.Listener(ctx)
	if err != nil {
		r.report(Error, "listener-certificate-unusable", err.Error(), "Correct the files or the Workload API that listen.tls names: the broker does not start until then.")
		return
	}
	detail := []string{fmt.Sprintf("%s, until %s", status.Name, day(status.Expires))}
	for _, authority := range status.Authorities {
		detail = append(detail, fmt.Sprintf("callers of %q, until %s", authority.Name, day(authority.Expires)))
	}
	r.pass(strings.Join(detail, "; "))
	for _, warning := range status.Warnings {
		r.report(Warning, "listener-certificate-doubtful", warning, "Correct the files that listen.tls names.")
	}
	left, life := status.Expires.Sub(r.Now()), status.Expires.Sub(status.Begins)
	if r.config.Listen.TLS.SPIFFE != nil && left < life/fleet.CertificateShare {
		r.report(Warning, fleet.CertificateEnding, fmt.Sprintf("the certificate %q of the Workload API expires in %s", status.Name, days(left)), "Check that the agent can reach its server: it renews certificates long before their end.")
	}
}
