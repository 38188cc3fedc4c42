package client_test

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// fromEnv creates a client with only this environment.
func fromEnv(t *testing.T, env map[string]string, opts ...client.Option) (*client.Client, error) {
	t.Helper()
	for _, name := range []string{"ADDR", "PLAINTEXT", "CA", "CERT", "KEY", "SERVER_NAME", "TOKEN_FILE"} {
		t.Setenv("TOKENBROKER_"+name, env[name])
	}
	state := env["XDG_STATE_HOME"]
	if state == "" {
		state = t.TempDir()
	}
	t.Setenv("XDG_STATE_HOME", state)
	c, err := client.FromEnv(opts...)
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// callFromEnv makes a call with a client from the environment, and returns its record.
func callFromEnv(t *testing.T, o *recordingServer, env map[string]string, opts ...client.Option) recordedCall {
	t.Helper()
	c, err := fromEnv(t, env, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Token(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return o.last(t)
}

func TestFromEnvironment(t *testing.T) {
	plain := startRecordingServer(t, "tcp", "127.0.0.1:0")
	certs := redistest.NewCertificates(t)
	secure := startRecordingServer(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	token := write(t, filepath.Join(t.TempDir(), "token"), "mine")

	if got := callFromEnv(t, plain, map[string]string{"ADDR": plain.addr}); got.authorization != "" {
		t.Errorf("on loopback: %+v", got)
	}
	if got := callFromEnv(t, plain, map[string]string{"ADDR": plain.addr, "PLAINTEXT": "true", "TOKEN_FILE": token}); got.authorization != "Bearer mine" {
		t.Errorf("with a token: %+v", got)
	}
	if got := callFromEnv(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA, "TOKEN_FILE": token}); got.authorization != "Bearer mine" || got.certificate != nil {
		t.Errorf("with authorities and a token: %+v", got)
	}
	if got := callFromEnv(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA, "CERT": certs.ClientCert, "KEY": certs.ClientKey, "SERVER_NAME": "localhost"}); got.certificate == nil {
		t.Errorf("with a certificate: %+v", got)
	}
	second := startRecordingServer(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	callFromEnv(t, secure, map[string]string{"ADDR": secure.addr + ", " + secure.addr, "CA": certs.CA})
	if c, err := fromEnv(t, map[string]string{"ADDR": secure.addr + "," + second.addr, "CA": certs.CA}); err != nil {
		t.Error(err)
	} else {
		// The second one is called once it is connected.
		for start := time.Now(); len(second.all()) == 0 && time.Since(start) < 30*time.Second; {
			if _, err := c.Token(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		second.last(t)
	}
	if got := callFromEnv(t, secure, map[string]string{"ADDR": plain.addr, "CA": certs.CA}, client.WithTarget(secure.addr)); got.certificate != nil {
		t.Errorf("with another target: %+v", got)
	}
	if got := callFromEnv(t, plain, map[string]string{"ADDR": plain.addr, "CA": certs.CA}, client.WithPlaintext()); got.certificate != nil {
		t.Errorf("with an option for plaintext: %+v", got)
	}
	if got := callFromEnv(t, secure, map[string]string{"ADDR": secure.addr, "PLAINTEXT": "true"}, client.WithTLSFiles(client.TLSFiles{CA: certs.CA})); got.certificate != nil {
		t.Errorf("with an option for TLS: %+v", got)
	}
	if got := callFromEnv(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA}, client.WithTLS(nil)); got.certificate != nil {
		t.Errorf("with an option for any TLS: %+v", got)
	}
	c, err := fromEnv(t, map[string]string{"ADDR": plain.addr, "PLAINTEXT": "false"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Unavailable {
		t.Errorf("without plaintext: %v", err)
	}
}

func TestFromEnvironment_refusesInvalid(t *testing.T) {
	certs := redistest.NewCertificates(t)
	for label, env := range map[string]map[string]string{
		"a word":            {"PLAINTEXT": "perhaps"},
		"a contradiction":   {"PLAINTEXT": "true", "CA": certs.CA},
		"half a pair":       {"CERT": certs.ClientCert},
		"a token in clear":  {"ADDR": "broker.example.com:1", "PLAINTEXT": "true", "TOKEN_FILE": certs.CA},
		"no authorities":    {"CA": "/none"},
		"a file of no sort": {"TOKEN_FILE": certs.CA},
	} {
		if _, err := fromEnv(t, env); err == nil {
			t.Errorf("%s: no error", label)
		}
	}
}

// writeDevCredential writes a credential as "broker dev" does.
func writeDevCredential(t *testing.T, state, host, port, token string) string {
	t.Helper()
	dir := filepath.Join(state, "tokenbroker", "dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(dir, host+"_"+port+".token"), token)
}

func TestDevCredentialIsUsed(t *testing.T) {
	o := startRecordingServer(t, "tcp", "127.0.0.1:0")
	certs := redistest.NewCertificates(t)
	_, port, err := net.SplitHostPort(o.addr)
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	file := writeDevCredential(t, state, "127.0.0.1", port, "dev")
	own := write(t, filepath.Join(t.TempDir(), "token"), "mine")

	for label, c := range map[string]struct {
		env  map[string]string
		opts []client.Option
		want string
	}{
		"by address":             {map[string]string{"ADDR": o.addr}, nil, "Bearer dev"},
		"by name":                {map[string]string{"ADDR": "localhost:" + port}, nil, "Bearer dev"},
		"by an option":           {nil, []client.Option{client.WithTarget(o.addr)}, "Bearer dev"},
		"unless there is one":    {map[string]string{"ADDR": o.addr, "TOKEN_FILE": own}, nil, "Bearer mine"},
		"unless an option says":  {map[string]string{"ADDR": o.addr}, []client.Option{client.WithTokenFile(own)}, "Bearer mine"},
		"of this port and state": {map[string]string{"ADDR": o.addr, "XDG_STATE_HOME": t.TempDir()}, nil, ""},
	} {
		env := map[string]string{"XDG_STATE_HOME": state}
		maps.Copy(env, c.env)
		if got := callFromEnv(t, o, env, c.opts...).authorization; got != c.want {
			t.Errorf("%s: presented %q", label, got)
		}
	}

	// The default path.
	home := t.TempDir()
	t.Setenv("HOME", home)
	writeDevCredential(t, filepath.Join(home, ".local", "state"), "127.0.0.1", port, "home")
	if got := callFromEnv(t, o, map[string]string{"ADDR": o.addr, "XDG_STATE_HOME": "relative"}).authorization; got != "Bearer home" {
		t.Errorf("in the default path: presented %q", got)
	}

	// A caller with a certificate does not present the credential.
	secure := startRecordingServer(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	_, port, _ = net.SplitHostPort(secure.addr)
	writeDevCredential(t, state, "127.0.0.1", port, "dev")
	got := callFromEnv(t, secure, map[string]string{"XDG_STATE_HOME": state, "ADDR": secure.addr, "CA": certs.CA, "CERT": certs.ClientCert, "KEY": certs.ClientKey})
	if got.authorization != "" || got.certificate == nil {
		t.Errorf("with a certificate: presented %q", got.authorization)
	}

	// A file that other users could read or write is not used.
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := fromEnv(t, map[string]string{"ADDR": o.addr, "XDG_STATE_HOME": state}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := fromEnv(t, map[string]string{"ADDR": o.addr, "XDG_STATE_HOME": state}); err == nil {
			t.Error("the file of another user")
		}
	}
}

func TestDevCredentialStaysOnTheHost(t *testing.T) {
	state := t.TempDir()
	writeDevCredential(t, state, "broker.example.com", "1", "dev")
	writeDevCredential(t, state, "127.0.0.1", "1", "dev")
	// The credential is not used: New would refuse a token in plaintext.
	for _, target := range []string{"broker.example.com:1", "127.0.0.1:1,broker.example.com:1"} {
		if _, err := fromEnv(t, map[string]string{"ADDR": target, "PLAINTEXT": "true", "XDG_STATE_HOME": state}); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}
