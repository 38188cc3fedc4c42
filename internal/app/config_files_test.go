package app_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/doctor"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestExposedFilesAreReportedWithTheirLines(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		testkit.WriteFile(t, path, "x")
		if err := os.Chmod(path, mode); err != nil { // the umask does not count
			t.Fatal(err)
		}
		return path
	}
	lines := []string{
		"listen:",
		"  tls: {cert: cert.pem, key: " + file("tls.key", 0o644) + "}", // 2
		"store:",
		"  sealing_keys: file:" + file("ring.json", 0o604), // 4
		"  redis:",
		"    addresses: [127.0.0.1:6379]",
		"    password: file:" + file("redis", 0o666), // 7
		"    tls: {cert: cert.pem, key: " + file("redis.key", 0o602) + "}", // 8
		"clients:",
		"  private: {token_url: 'https://idp.example/token', client_id: a, secret: file:" + file("private", 0o600) + "}",
		"  group: {token_url: 'https://idp.example/token', client_id: a, secret: file:" + file("group", 0o660) + "}",
		"  others: {token_url: 'https://idp.example/token', client_id: a, secret: file:" + file("others", 0o644) + "}",                         // 12
		"  directory: {token_url: 'https://idp.example/token', client_id: a, secret: file:" + filepath.Dir(file("both/previous", 0o644)) + "}", // 13
		"  absent: {token_url: 'https://idp.example/token', client_id: a, secret: file:" + dir + "/absent}",
		"  assertion: {token_url: 'https://idp.example/token', client_id: a, auth: federated_jwt, assertion: {file: " + file("jwt", 0o644) + "}}",                // 15
		"  mutual: {token_url: 'https://idp.example/token', client_id: a, auth: tls_client_auth, tls: {cert: cert.pem, key: " + file("mutual.key", 0o644) + "}}", // 16
	}
	config, err := config.Parse("broker.yaml", []byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	var reported []string
	for _, problem := range config.ExposedFiles() {
		if !strings.Contains(problem.Message, dir) {
			t.Errorf("%s names no file", problem)
		}
		reported = append(reported, fmt.Sprint(problem.Line))
	}
	if got, want := strings.Join(reported, " "), "2 4 7 8 12 13 15 16"; got != want {
		t.Errorf("lines %s are reported, want %s", got, want)
	}
}

func TestDoubtfulSecretsAreWarnedOf(t *testing.T) {
	idp := devIDP(t)
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "secret")
	testkit.WriteFile(t, secretFile, "\ufeffright\n\n")
	config, err := config.Parse("broker.yaml", []byte(
		"listen: {grpc: {address: '127.0.0.1:0'}, ops: '127.0.0.1:0'}\nclients: {orders: {issuer: "+idp.Issuer()+", client_id: abc, secret: 'file:"+secretFile+"'}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "begins with a byte order mark, contains a line end"
	report := doctor.Run(t.Context(), "broker.yaml", config, doctor.Options{Transport: idp.RoundTripper()})
	warned := 0
	for _, f := range report.Findings {
		if f.Severity == doctor.Warning && f.Subject == "clients.orders: secret" && f.Line == 2 && strings.Contains(f.Message, want) {
			warned++
		}
	}
	if warned != 1 {
		t.Errorf("findings: %+v", report.Findings)
	}
	log := &testkit.Log{}
	started, err := app.New(config, app.Options{Transport: idp.RoundTripper(), Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	started.Close()
	if !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "client=orders") {
		t.Errorf("the log of the start does not mention the secret:\n%s", log)
	}
}
