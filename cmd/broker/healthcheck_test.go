package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// The health check of the image has only the configuration file.
func TestHealthcheckFollowsTheConfiguration(t *testing.T) {
	isolate(t)
	certs, dir := redistest.NewCertificates(t), t.TempDir()
	keys := filepath.Join(dir, "keys.json")
	testkit.WriteFile(t, keys, `{"keys":[{"kty":"EC","crv":"P-256","kid":"a","alg":"ES256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`)
	for name, listen := range map[string]string{
		"plaintext":          "grpc: %q",
		"TLS":                "grpc: %q, tls: {cert: " + certs.ServerCert + ", key: " + certs.ServerKey + "}",
		"mutual TLS":         "grpc: %q, tls: {cert: " + certs.ServerCert + ", key: " + certs.ServerKey + ", client_ca: " + certs.CA + "}",
		"a socket and TLS":   "grpc: %q, unix: {path: " + filepath.Join(dir, "s") + "}, tls: {cert: " + certs.ServerCert + ", key: " + certs.ServerKey + "}",
		"plaintext, no TLS ": "grpc: {address: %q, plaintext: true}",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "broker.yaml")
			testkit.WriteFile(t, file, fmt.Sprintf("listen: {"+listen+", ops: 'off'}\nissuers: [{issuer: 'https://a', jwks_file: %q, audiences: [api]}]\n", freeAddress(t), keys))
			read, err := config.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, stderr, code := runCommand(t.Context(), "healthcheck", "--config", file); code != exitNegative || !strings.Contains(stderr, "no broker listens at") {
				t.Errorf("no broker: exit code %d: %s", code, stderr)
			}
			broker, err := app.New(read, app.Options{Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- broker.Run(ctx) }()
			testkit.Succeeds(t, "the health check", func() error {
				if stdout, stderr, code := runCommand(t.Context(), "healthcheck", "--config", file); code != 0 || stdout != "SERVING\n" {
					return fmt.Errorf("exit code %d: %s%s", code, stdout, stderr)
				}
				return nil
			})
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	if _, stderr, code := runCommand(t.Context(), "healthcheck", "--config", os.DevNull); code != exitNegative || !strings.Contains(stderr, "empty") {
		t.Errorf("an empty file: exit code %d: %s", code, stderr)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}
