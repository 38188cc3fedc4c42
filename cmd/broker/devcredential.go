package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/server"
)

// The caller that broker dev lets do everything.
const devCaller = "dev"

// A credential is renewed long before it ends.
const (
	credentialLifetime = time.Hour
	credentialRenewal  = 20 * time.Minute
)

// credential is a file with the JWT of a caller.
type credential struct {
	idp  *devidp.Server
	path string
}

// leaveCredential writes a credential where the commands, and clients of the same
// user, look for that of the broker at addr; in dir, where they do not, if there is
// no such place. found reports which.
func leaveCredential(idp *devidp.Server, addr, dir string) (left *credential, found bool, err error) {
	if path, err := credentialPath(addr); err == nil {
		left = &credential{idp, path}
		if left.write() == nil {
			return left, true, nil
		}
	}
	left = &credential{idp, filepath.Join(dir, "dev.token")}
	return left, false, left.write()
}

// credentialPath is where client.FromEnv looks, in a directory for the user alone.
func credentialPath(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the XDG specification has others ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		state = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(state, "tokenbroker", "dev")
	return filepath.Join(dir, host+"_"+port+".token"), os.MkdirAll(dir, 0o700)
}

// write makes the file anew, all at once.
func (c *credential) write() error {
	now := time.Now()
	token := c.idp.Mint(map[string]any{
		"iss": c.idp.Issuer(), "sub": devCaller, "client_id": devCaller, "aud": server.DefaultAudience,
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

// keep renews the credential until ctx ends, and removes it then.
func (c *credential) keep(ctx context.Context) {
	defer func() { _ = os.Remove(c.path) }()
	ticker := time.NewTicker(credentialRenewal)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = c.write() // the one before is good for a while
		}
	}
}
