package doctor_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	brokerclient "github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/doctor"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a directory with a configuration, and an IdP that serves HTTP.
type world struct {
	t      *testing.T
	dir    string
	idp    *devidp.Server
	issuer string
	// date is what the IdP adds to the time in its Date header.
	date time.Duration
	// secret is that of the client.
	secret string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), secret: redacttest.Canary("client-secret")}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Date", time.Now().Add(w.date).UTC().Format(http.TimeFormat))
		w.idp.ServeHTTP(rw, r)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	w.issuer = "http://" + server.Listener.Addr().String()
	idp, err := devidp.New(devidp.Config{Issuer: w.issuer, Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New(w.secret)}, Scopes: []string{"read", "write"}, Audiences: []string{"api"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.idp = idp
	server.Start()
	t.Cleanup(server.Close)
	w.file("secret", w.secret)
	return w
}

// file writes a file that only its owner can read, and returns its path.
func (w *world) file(name, content string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	testkit.WriteFile(w.t, path, content)
	return path
}

// client is the line of a client in a configuration.
func (w *world) client(name, more string) string {
	return fmt.Sprintf("  %s: {issuer: %q, client_id: abc, secret: 'file:%s/secret', audience: api%s}\n", name, w.issuer, w.dir, more)
}

// good is a configuration without findings.
func (w *world) good() string {
	return "listen: {grpc: {address: '127.0.0.1:0', caller: shop}, ops: '127.0.0.1:0'}\nclients:\n" + w.client("orders", ", scopes: [read]") +
		fmt.Sprintf("issuers:\n  - {issuer: %q, audiences: [api], introspection: {client: orders}}\n", w.issuer) +
		"callers: [{name: shop, roles: [orders]}]\nroles:\n  orders: {get: [{client: orders}], verify: [{issuer: '*'}]}\n"
}

// run checks a configuration, in a file of that content.
func (w *world) run(text string, options doctor.Options) doctor.Report {
	w.t.Helper()
	file := w.file("broker.yaml", text)
	cfg, err := config.Load(file)
	if err != nil {
		w.t.Fatal(err)
	}
	return doctor.Run(w.t.Context(), file, cfg, options)
}

// expect fails the test unless the report has exactly the findings "severity id line",
// each with an action. It returns their messages.
func (w *world) expect(report doctor.Report, want ...string) (messages string) {
	w.t.Helper()
	var got []string
	for _, f := range report.Findings {
		got = append(got, fmt.Sprintf("%s %s %d", f.Severity, f.ID, f.Line))
		messages += f.Subject + ": " + f.Message + "\n"
		if f.Message == "" || f.Action == "" || f.Subject == "" || (f.File == "") != (f.Line == 0) || strings.Contains(f.Message+f.Action, "\n") {
			w.t.Errorf("an incomplete finding: %+v", f)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		w.t.Errorf("findings:\n%s\nwant:\n%s\nmessages:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), messages)
	}
	return messages
}

// contains fails the test unless the text has all parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in:\n%s", part, text)
		}
	}
}

func TestDoctorFindsNothingInAGoodConfiguration(t *testing.T) {
	w := newWorld(t)
	report := w.run(w.good(), doctor.Options{Mint: true})
	w.expect(report)
	if report.Checks < 8 || len(report.Passed) < 5 {
		t.Errorf("%d checks, passed: %+v", report.Checks, report.Passed)
	}
}

func TestDoctorChecksTheRestAfterAFailure(t *testing.T) {
	w := newWorld(t)
	text := strings.Replace(w.good(), w.dir+"/secret", w.dir+"/absent", 1)
	text = strings.Replace(text, "issuers:\n", w.client("other", ", scopes: [read]")+"issuers:\n  - {issuer: 'http://127.0.0.1:1', audiences: [api]}\n", 1)
	report := w.run(text, doctor.Options{Mint: true})
	messages := w.expect(report, "error config-unusable 3", "error issuer-keys-unusable 6", "note introspection-unknown 7", "note clock-unknown 6")
	contains(t, messages, "clients.orders: secret: ", "absent: no such file")
	passed := fmt.Sprint(report.Passed)
	contains(t, passed, "clients.other: token ", "clients.orders: token endpoint "+w.issuer+"/token", "issuers "+w.issuer+": keys")
}

func TestDoctorAbandonsAHangingCheck(t *testing.T) {
	w := newWorld(t)
	released := make(chan struct{})
	report := w.run(w.good(), doctor.Options{Limit: 2 * time.Second, Fleet: func(context.Context) (doctor.Fleet, error) {
		<-released // it ignores its context
		return doctor.Fleet{}, nil
	}})
	close(released)
	contains(t, w.expect(report, "error check-timeout 0"), "fleet: the check did not end within 2s")
}

func TestDoctorComparesClocks(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		date time.Duration
		want []string
		says string
	}{
		{5 * time.Second, nil, ""},
		{-20 * time.Second, []string{"warning clock-differs 3"}, "ahead of that of the server"},
		{2 * time.Minute, []string{"error clock-differs 3"}, "is 2m0s behind that of the server"},
	} {
		w.date = c.date
		contains(t, w.expect(w.run(w.good(), doctor.Options{}), c.want...), c.says)
	}
}

func TestDoctorReportsCertificatesThatEnd(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	root, err := devca.New("root")
	if err != nil {
		t.Fatal(err)
	}
	authority := func(name string, until time.Time) {
		t.Helper()
		a, err := root.Below(name, until)
		if err != nil {
			t.Fatal(err)
		}
		w.file(name+".crt", string(a.PEM()))
	}
	own := func(name string, begins, ends time.Time) {
		t.Helper()
		pair, err := root.Issue(&x509.Certificate{DNSNames: []string{name}, NotBefore: begins, NotAfter: ends, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := pair.Write(w.dir, name); err != nil {
			t.Fatal(err)
		}
	}
	const day = 24 * time.Hour
	text := strings.Replace(w.good(), "{address: '127.0.0.1:0', caller: shop}", fmt.Sprintf("{address: '127.0.0.1:0', caller: shop},\n  tls: {cert: %[1]s/own.crt,\n    key: %[1]s/own.key,\n    client_ca: %[1]s/callers.crt}", w.dir), 1)
	for _, c := range []struct {
		name                string
		begins, ends, calls time.Duration
		want                []string
	}{
		{"all well", -day, 60 * day, 60 * day, nil},
		{"own in 20 days", -day, 20 * day, 60 * day, []string{"warning certificate-ending 2"}},
		{"own in 5 days, CA of callers in 25", -30 * day, 5 * day, 25 * day, []string{"error certificate-ending 2", "warning certificate-ending 4"}},
		{"CA of callers in 5 days", -day, 60 * day, 5 * day, []string{"error certificate-ending 4"}},
		{"own for a day, renewed by a program", -time.Hour, 23 * time.Hour, 60 * day, nil},
		{"own for a day, not renewed", -23 * time.Hour, time.Hour, 60 * day, []string{"warning certificate-ending 2"}},
		{"own expired", -30 * day, -time.Hour, 60 * day, []string{"error certificate-ended 2", "error listener-certificate-unusable 2"}},
	} {
		t.Run(c.name, func(*testing.T) {
			own("own", now.Add(c.begins), now.Add(c.ends))
			authority("callers", now.Add(c.calls))
			w.expect(w.run(text, doctor.Options{}), c.want...)
		})
	}
	t.Run("client certificate", func(t *testing.T) {
		own("own", now.Add(-day), now.Add(60*day))
		authority("callers", now.Add(60*day))
		own("mtls", now.Add(-day), now.Add(3*day))
		mutual := strings.Replace(text, "issuers:\n", fmt.Sprintf("  mutual: {token_url: %q, client_id: m, auth: tls_client_auth, tls: {cert: %[2]s/mtls.crt, key: %[2]s/mtls.key}}\nissuers:\n", "https://127.0.0.1:1/token", w.dir), 1)
		contains(t, w.expect(w.run(mutual, doctor.Options{}), "error certificate-ending 7", "note clock-unknown 7"), "clients.mutual.tls.cert: the certificate ", "in 2 days")
	})
}

func TestDoctorReportsSecretFiles(t *testing.T) {
	w := newWorld(t)
	text := strings.Replace(w.good(), "issuers:\n", "  empty: {token_url: '"+w.issuer+"/token', client_id: abc, secret: 'file:"+w.file("empty", "")+"'}\nissuers:\n", 1)
	if err := os.Chmod(filepath.Join(w.dir, "secret"), 0o604); err != nil {
		t.Fatal(err)
	}
	messages := w.expect(w.run(text, doctor.Options{}), "error secret-file-empty 4", "error config-unusable 4", "warning secret-file-exposed 3")
	contains(t, messages, "clients.empty.secret: ", "clients.orders.secret: every user of this machine may read")
}

func TestDoctorReportsPermissionsWithoutEffect(t *testing.T) {
	w := newWorld(t)
	issuer := strings.Index(w.good(), "issuers:")
	clients := w.good()[:issuer] + w.client("wide", ", scopes: [read, write]")
	text := clients + `callers:
  - {name: shop, roles: [narrow, target]}
  - {name: idle, uid: 7, roles: [nothing]}
listen_: 0
roles:
  narrow: {get: [{client: wide, scopes: [read]}, {client: orders, scopes: [raed]}]}
  target: {get: [{client: nowhere}]}
  nothing: {verify: [{issuer: "*"}]}
  unused: {admin: [{actions: [purge_tokens]}]}
`
	text = strings.Replace(text, "listen_: 0\n", "", 1)
	text = strings.Replace(text, "{client: nowhere}", "{client: elsewhere, audiences: [other]}", 1)
	text = strings.Replace(text, "callers:\n", w.client("elsewhere", "")+"callers:\n", 1)
	messages := w.expect(w.run(text, doctor.Options{}),
		"warning config-doubtful 8", "warning config-doubtful 13", "warning caller-without-permission 8", "warning grant-narrower 11", "warning grant-narrower 10", "note grant-narrower 10", "note role-scope-unknown 10")
	contains(t, messages, "caller idle may do nothing", "client orders that names nothing else is denied: no grant allows any of its default scopes, which are read",
		"client elsewhere that names nothing else is denied: no grant allows the default audience", "without the default scopes write (callers: shop)", "raed")
}

func TestDoctorTriesTheScopesOfRoles(t *testing.T) {
	w := newWorld(t)
	more := func(scope string) string {
		return strings.Replace(w.good(), "get: [{client: orders}", "get: [{client: orders, scopes: [read, "+scope+"]}", 1)
	}
	w.expect(w.run(more("write"), doctor.Options{Mint: true}))
	contains(t, w.expect(w.run(more("delete"), doctor.Options{Mint: true}), "warning role-scope-refused 3"), "delete, read")
	w.idp.SetSecrets("abc", redact.New("another"))
	w.expect(w.run(more("write"), doctor.Options{Mint: true}), "error secret-refused 3", "error introspection-unusable 5")
}

func TestDoctorChecksRedis(t *testing.T) {
	w := newWorld(t)
	ring := filepath.Join(w.dir, "ring.json")
	if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	password := redacttest.Canary("redis-password")
	line := strings.Replace(redisstore.ACLExample, "PASSWORD", password, 1)
	server := redistest.Start(t, redistest.Options{AppendOnly: true, Config: []string{"maxmemory 200mb", "maxmemory-policy volatile-ttl"}, ACL: []string{
		line + " +info +time", strings.Replace(line, "tokenbroker", "minimal", 1),
		strings.Replace(line, "tokenbroker", "narrow", 1) + " +info +time -publish", "user wide on >" + password + " ~* &* +@all",
	}})
	w.file("password", password)
	text := func(user string) string {
		return w.good() + fmt.Sprintf("store:\n  sealing_keys: 'file:%s'\n  redis: {addresses: [%q], username: %s, password: 'file:%s/password'}\n", ring, server.Addr(), user, w.dir)
	}
	report := w.run(text("tokenbroker"), doctor.Options{})
	w.expect(report)
	contains(t, fmt.Sprint(report.Passed), "of 200 MiB used, volatile-ttl, append-only file", "store: clock of Redis agrees within")
	t.Run("minimal", func(t *testing.T) {
		contains(t, w.expect(w.run(text("minimal"), doctor.Options{}), "note store-unknown 11", "note clock-unknown 11"), "may not run INFO", "may not run TIME")
	})
	t.Run("narrow", func(t *testing.T) {
		report := w.run(text("narrow"), doctor.Options{})
		contains(t, w.expect(report, "error store-unusable 11"), "it may not run PUBLISH")
		contains(t, fmt.Sprint(report.Passed), "volatile-ttl, append-only file") // not hidden
	})
	t.Run("wide", func(t *testing.T) {
		contains(t, w.expect(w.run(text("wide"), doctor.Options{}), "note store-rights-wide 11"), "CONFIG", "do not begin with tb1:")
	})
	t.Run("clock", func(t *testing.T) {
		now := func() time.Time { return time.Now().Add(-2 * time.Minute) }
		messages := w.expect(w.run(text("tokenbroker"), doctor.Options{Now: now}), "error clock-differs 11", "error clock-differs 3")
		contains(t, messages, "is 2m0s behind that of Redis at "+server.Addr())
	})
	t.Run("settings", func(t *testing.T) {
		server.CLI("config", "set", "appendonly", "no")
		server.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
		defer server.CLI("config", "set", "maxmemory-policy", "volatile-ttl")
		defer server.CLI("config", "set", "appendonly", "yes")
		contains(t, w.expect(w.run(text("tokenbroker"), doctor.Options{}), "warning store-setting 11", "warning store-setting 11"), "allkeys-lru may evict", "no append-only file")
		managed := strings.Replace(text("tokenbroker"), "issuers:\n", "  managed: {issuer: '"+w.issuer+"', client_id: m, secret: managed}\nissuers:\n", 1)
		contains(t, w.expect(w.run(managed, doctor.Options{}), "error store-evicts 12", "warning store-setting 12"), "may evict the secrets", "NO APPEND-ONLY FILE")
	})
	t.Run("no ring", func(t *testing.T) {
		absent := strings.Replace(text("narrow"), ring, ring+".absent", 1)
		contains(t, w.expect(w.run(absent, doctor.Options{}), "error config-unusable 9", "error store-unusable 11"), "store.sealing_keys: ")
	})
	t.Run("wrong password", func(t *testing.T) {
		w.file("password", "canary-wrong")
		defer w.file("password", password)
		report := w.run(text("tokenbroker"), doctor.Options{})
		if messages := fmt.Sprint(report.Findings); !strings.Contains(messages, "refuses the login") || strings.Contains(messages, "canary-wrong") {
			t.Error(messages)
		}
	})
	t.Run("away", func(*testing.T) {
		server.Kill()
		w.expect(w.run(text("tokenbroker"), doctor.Options{}), "error store-away 11", "note store-unknown 11", "note store-unknown 11", "note store-unknown 11", "note store-unknown 10")
	})
}

func TestDoctorLeavesAStoreInUse(t *testing.T) {
	w := newWorld(t)
	ring, file := filepath.Join(w.dir, "ring.json"), filepath.Join(w.dir, "broker.db")
	if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(w.good(), "issuers:\n", "  managed: {issuer: '"+w.issuer+"', client_id: m, secret: managed}\nissuers:\n", 1) +
		fmt.Sprintf("store:\n  sealing_keys: 'file:%s'\n  bolt: %q\n", ring, file)
	running, err := boltstore.Open(boltstore.Config{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Close() }()
	w.expect(w.run(text, doctor.Options{Mint: true}), "note store-in-use 10")
}

// A token that the fleet has in its store says nothing about the secret in a file that is
// checked, and the check leaves nothing in that store.
func TestDoctorRequestsTokensFromTheIdP(t *testing.T) {
	w := newWorld(t)
	ring := filepath.Join(w.dir, "ring.json")
	if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	server := redistest.Start(t, redistest.Options{})
	text := w.good() + fmt.Sprintf("store:\n  sealing_keys: 'file:%s'\n  redis: {addresses: [%q]}\n", ring, server.Addr())
	w.getToken(text, "orders")
	// refused reports whether the secret was refused.
	refused := func() bool {
		report := w.run(text, doctor.Options{Mint: true})
		return slices.ContainsFunc(report.Findings, func(f doctor.Finding) bool { return f.ID == "secret-refused" && f.Line == 3 })
	}
	before := w.idp.Requests("/token")
	if refused() || w.idp.Requests("/token") != before+1 {
		t.Errorf("the right secret is refused, or not tried: %d requests", w.idp.Requests("/token")-before)
	}
	w.file("secret", redacttest.Canary("wrong-secret"))
	if !refused() {
		t.Error("a wrong secret is not reported while the fleet has a token")
	}
	w.file("secret", w.secret)
	if before = w.idp.Requests("/token"); refused() || w.idp.Requests("/token") != before+1 {
		t.Error("a check leaves a failure or a token in the store")
	}
}

// getToken runs a broker with the configuration until it has a token of the client.
func (w *world) getToken(text, client string) {
	w.t.Helper()
	cfg, err := config.Load(w.file("broker.yaml", text))
	if err != nil {
		w.t.Fatal(err)
	}
	running, err := app.New(cfg, app.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- running.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	c, err := brokerclient.New(running.GRPCAddr(), brokerclient.WithPlaintext())
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Token(w.t.Context(), client); err != nil {
		w.t.Fatal(err)
	}
}

func TestDoctorComparesTheFleet(t *testing.T) {
	w := newWorld(t)
	cfg, err := config.Load(w.file("broker.yaml", w.good()))
	if err != nil {
		t.Fatal(err)
	}
	run := func(fleet doctor.Fleet, err error) doctor.Report {
		return w.run(w.good(), doctor.Options{Fleet: func(context.Context) (doctor.Fleet, error) { return fleet, err }})
	}
	same := doctor.Replica{Name: "a", Digest: cfg.Digest[:]}
	w.expect(run(doctor.Fleet{Replicas: []doctor.Replica{same}}, nil))
	w.expect(run(doctor.Fleet{}, errors.New("refused")), "note fleet-unknown 0")
	other := doctor.Replica{Name: "b", Digest: make([]byte, 32)}
	contains(t, w.expect(run(doctor.Fleet{Replicas: []doctor.Replica{same, other, {Name: "c"}}, Findings: 2}, nil),
		"warning config-differs 1", "note fleet-unknown 0", "note fleet-findings 0"), "1 of 3 replicas", "b runs 00000000", "2 findings")
}

// No finding and no passed check repeats a secret, whatever fails.
func TestDoctorPrintsNoSecret(t *testing.T) {
	w := newWorld(t)
	secrets := map[string]string{"client": w.secret}
	canary := func(name string) string { secrets[name] = redacttest.Canary(name); return secrets[name] }
	server := redistest.Start(t, redistest.Options{ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", canary("redis"), 1) + " -eval"}})
	w.file("password", secrets["redis"])
	w.file("ring", canary("ring"))
	w.file("tls.crt", canary("certificate"))
	w.file("tls.key", canary("key"))
	w.file("doubtful", "\ufeff"+canary("doubtful")+"\n\n")
	w.file("pem", canary("assertion-key"))
	w.file("jwks-token", canary("jwks-token"))
	text := w.good() + fmt.Sprintf("store:\n  sealing_keys: 'file:%[1]s/ring'\n  redis: {addresses: [%[2]q], username: tokenbroker, password: 'file:%[1]s/password'}\n", w.dir, server.Addr())
	text = strings.Replace(text, "caller: shop}", fmt.Sprintf("caller: shop}, tls: {cert: %[1]s/tls.crt, key: %[1]s/tls.key}", w.dir), 1)
	text = strings.Replace(text, "issuers:\n", fmt.Sprintf(`  doubtful: {issuer: %[1]q, client_id: abc, secret: 'file:%[2]s/doubtful'}
  query: {token_url: "https://127.0.0.1:1/token?key=%[3]s", client_id: abc, secret: 'file:%[2]s/secret'}
  pem: {issuer: %[1]q, client_id: abc, auth: private_key_jwt, secret: 'file:%[2]s/pem'}
issuers:
  - {issuer: "https://127.0.0.1:1", jwks_url: "https://127.0.0.1:1/keys?key=%[4]s", jwks_token_file: %[2]s/jwks-token, audiences: [api]}
`, w.issuer, w.dir, canary("token-url"), canary("jwks-url")), 1)
	echo := func(rw http.ResponseWriter, r *http.Request) bool {
		_, password, _ := r.BasicAuth()
		rw.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprintf(rw, `{"error":"invalid_request","error_description":%q}`, "the secret is "+password)
		return true
	}
	for _, answer := range []func(http.ResponseWriter, *http.Request) bool{nil, echo} {
		w.idp.SetAnswer(answer)
		report := w.run(text, doctor.Options{Mint: true})
		printed, err := json.Marshal(report)
		if err != nil || report.Count(doctor.Error) < 5 {
			t.Errorf("%s, %v", printed, err)
		}
		for name, secret := range secrets {
			if places := (redacttest.Places{"report": string(printed)}).Of(secret); len(places) > 0 {
				t.Errorf("the secret %s is printed:\n%s", name, printed)
			}
		}
	}
}
