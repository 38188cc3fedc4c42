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

// fromEnv makes a client in this environment alone.
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

// works reports how a client from the environment is known to the server.
func works(t *testing.T, o *observer, env map[string]string, opts ...client.Option) seen {
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
	plain := observe(t, "tcp", "127.0.0.1:0")
	certs := redistest.NewCertificates(t)
	secure := observe(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	token := write(t, filepath.Join(t.TempDir(), "token"), "mine")

	if got := works(t, plain, map[string]string{"ADDR": plain.addr}); got.authorization != "" {
		t.Errorf("on loopback: %+v", got)
	}
	if got := works(t, plain, map[string]string{"ADDR": plain.addr, "PLAINTEXT": "true", "TOKEN_FILE": token}); got.authorization != "Bearer mine" {
		t.Errorf("with a token: %+v", got)
	}
	if got := works(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA, "TOKEN_FILE": token}); got.authorization != "Bearer mine" || got.certificate != nil {
		t.Errorf("with authorities and a token: %+v", got)
	}
	if got := works(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA, "CERT": certs.ClientCert, "KEY": certs.ClientKey, "SERVER_NAME": "localhost"}); got.certificate == nil {
		t.Errorf("with a certificate: %+v", got)
	}
	also := observe(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	works(t, secure, map[string]string{"ADDR": secure.addr + ", " + secure.addr, "CA": certs.CA})
	if c, err := fromEnv(t, map[string]string{"ADDR": secure.addr + "," + also.addr, "CA": certs.CA}); err != nil {
		t.Error(err)
	} else {
		// The second one is asked once the connection to it is there.
		for begun := time.Now(); len(also.all()) == 0 && time.Since(begun) < 30*time.Second; {
			if _, err := c.Token(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		also.last(t)
	}
	if got := works(t, secure, map[string]string{"ADDR": plain.addr, "CA": certs.CA}, client.WithTarget(secure.addr)); got.certificate != nil {
		t.Errorf("with another target: %+v", got)
	}
	if got := works(t, plain, map[string]string{"ADDR": plain.addr, "CA": certs.CA}, client.WithPlaintext()); got.certificate != nil {
		t.Errorf("with an option for plaintext: %+v", got)
	}
	if got := works(t, secure, map[string]string{"ADDR": secure.addr, "PLAINTEXT": "true"}, client.WithTLSFiles(client.TLSFiles{CA: certs.CA})); got.certificate != nil {
		t.Errorf("with an option for TLS: %+v", got)
	}
	if got := works(t, secure, map[string]string{"ADDR": secure.addr, "CA": certs.CA}, client.WithTLS(nil)); got.certificate != nil {
		t.Errorf("with an option for any TLS: %+v", got)
	}
	c, err := fromEnv(t, map[string]string{"ADDR": plain.addr, "PLAINTEXT": "false"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Token(t.Context(), name); status.Code(err) != codes.Unavailable {
		t.Errorf("without leave for plaintext: %v", err)
	}
}

func TestFromEnvironment_refusesInvalid(t *testing.T) {
	certs := redistest.NewCertificates(t)
	for what, env := range map[string]map[string]string{
		"a word":            {"PLAINTEXT": "perhaps"},
		"a contradiction":   {"PLAINTEXT": "true", "CA": certs.CA},
		"half a pair":       {"CERT": certs.ClientCert},
		"a token in clear":  {"ADDR": "broker.example.com:1", "PLAINTEXT": "true", "TOKEN_FILE": certs.CA},
		"no authorities":    {"CA": "/none"},
		"a file of no sort": {"TOKEN_FILE": certs.CA},
	} {
		if _, err := fromEnv(t, env); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// devCredential is the credential that "broker dev" leaves.
func devCredential(t *testing.T, state, host, port, token string) string {
	t.Helper()
	dir := filepath.Join(state, "tokenbroker", "dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(dir, host+"_"+port+".token"), token)
}

func TestDevCredentialIsUsed(t *testing.T) {
	o := observe(t, "tcp", "127.0.0.1:0")
	certs := redistest.NewCertificates(t)
	_, port, err := net.SplitHostPort(o.addr)
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	file := devCredential(t, state, "127.0.0.1", port, "dev")
	own := write(t, filepath.Join(t.TempDir(), "token"), "mine")

	for what, c := range map[string]struct {
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
		if got := works(t, o, env, c.opts...).authorization; got != c.want {
			t.Errorf("%s: presented %q", what, got)
		}
	}

	// Its default place.
	home := t.TempDir()
	t.Setenv("HOME", home)
	devCredential(t, filepath.Join(home, ".local", "state"), "127.0.0.1", port, "home")
	if got := works(t, o, map[string]string{"ADDR": o.addr, "XDG_STATE_HOME": "relative"}).authorization; got != "Bearer home" {
		t.Errorf("in its default place: presented %q", got)
	}

	// A caller with a certificate is known by that.
	secure := observe(t, "tcp", "127.0.0.1:0", serverTLS(t, certs))
	_, port, _ = net.SplitHostPort(secure.addr)
	devCredential(t, state, "127.0.0.1", port, "dev")
	got := works(t, secure, map[string]string{"XDG_STATE_HOME": state, "ADDR": secure.addr, "CA": certs.CA, "CERT": certs.ClientCert, "KEY": certs.ClientKey})
	if got.authorization != "" || got.certificate == nil {
		t.Errorf("with a certificate: presented %q", got.authorization)
	}

	// What others could read is no secret, and what they could write no credential.
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
	devCredential(t, state, "broker.example.com", "1", "dev")
	devCredential(t, state, "127.0.0.1", "1", "dev")
	// New would refuse a token in plaintext there, so that none is meant.
	for _, target := range []string{"broker.example.com:1", "127.0.0.1:1,broker.example.com:1"} {
		if _, err := fromEnv(t, map[string]string{"ADDR": target, "PLAINTEXT": "true", "XDG_STATE_HOME": state}); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}
