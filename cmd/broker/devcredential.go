package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devidp"
)

// devCaller is the caller with all permissions in broker dev.
const devCaller = "dev"

// A credential is renewed long before it expires.
const (
	credentialLifetime = time.Hour
	credentialRenewal  = 20 * time.Minute
)

// credential is a file with the JWT of a caller.
type credential struct {
	idp  *devidp.Server
	path string
}

// newCredential writes a credential to the default path of the broker at addr, where the
// commands and clients of the same user find it. If that fails, it writes to dir, and
// isDefault is false.
func newCredential(idp *devidp.Server, addr, dir string) (c *credential, isDefault bool, err error) {
	if path, err := credentialPath(addr); err == nil {
		c = &credential{idp, path}
		if c.write() == nil {
			return c, true, nil
		}
	}
	c = &credential{idp, filepath.Join(dir, "dev.token")}
	return c, false, c.write()
}

// credentialPath returns the path that client.FromEnv reads, and makes its directory,
// which only the user can read.
func credentialPath(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the XDG specification says to ignore relative paths
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		state = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(state, "tokenbroker", "dev")
	return filepath.Join(dir, host+"_"+port+".token"), os.MkdirAll(dir, 0o700) //nolint:gosec // the user's own environment says where it is
}

// write replaces the file atomically.
func (c *credential) write() error {
	now := time.Now()
	token := c.idp.Mint(map[string]any{
		"iss": c.idp.Issuer(), "sub": devCaller, "client_id": devCaller, "aud": caller.DefaultAudience,
		"iat": now.Unix(), "exp": now.Add(credentialLifetime).Unix(),
	})
	temp, err := os.CreateTemp(filepath.Dir(c.path), ".dev-*") // its mode is 0600
	if err != nil {
		return err
	}
	_, err = temp.WriteString(token.Reveal() + "\n")
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), c.path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

// renew renews the credential until ctx ends, and then removes it.
func (c *credential) renew(ctx context.Context) {
	defer func() { _ = os.Remove(c.path) }()
	ticker := time.NewTicker(credentialRenewal)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = c.write() // on failure the previous one stays valid for a while
		}
	}
}
