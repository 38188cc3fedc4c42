package client

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// DefaultTarget is the target of FromEnv if TOKENBROKER_ADDR is not set: the
// default address of "broker dev".
const DefaultTarget = "127.0.0.1:8443"

// FromEnv returns a Client configured by the environment; the options take
// precedence over it.
//
//	TOKENBROKER_ADDR         the target, as for New; without it DefaultTarget
//	TOKENBROKER_PLAINTEXT    true or false; without it, plaintext on loopback and
//	                         over Unix sockets if nothing below requires TLS
//	TOKENBROKER_CA           file with the authorities to trust
//	TOKENBROKER_CERT         file with the client certificate, and
//	TOKENBROKER_KEY          with its private key
//	TOKENBROKER_SERVER_NAME  name in the broker's certificate
//	TOKENBROKER_TOKEN_FILE   file with the bearer token to present
//
// If no credential is configured and the broker is on loopback, the credential
// that "broker dev" wrote for this user is presented.
func FromEnv(opts ...Option) (*Client, error) {
	cfg := settings{
		files: TLSFiles{
			CA:         os.Getenv("TOKENBROKER_CA"),
			Cert:       os.Getenv("TOKENBROKER_CERT"),
			Key:        os.Getenv("TOKENBROKER_KEY"),
			ServerName: os.Getenv("TOKENBROKER_SERVER_NAME"),
		},
		tokenFile: os.Getenv("TOKENBROKER_TOKEN_FILE"),
	}
	if text := os.Getenv("TOKENBROKER_PLAINTEXT"); text != "" {
		plaintext, err := strconv.ParseBool(text)
		if err != nil {
			return nil, errors.New("tokenbroker: TOKENBROKER_PLAINTEXT: want true or false")
		}
		cfg.plaintext = &plaintext
	}
	for _, opt := range opts {
		opt(&cfg)
	}
	target := cfg.target
	if target == "" {
		target = os.Getenv("TOKENBROKER_ADDR")
	}
	if target == "" {
		target = DefaultTarget
	}
	if err := cfg.applyLocalDefaults(target); err != nil {
		return nil, err
	}
	return dial(target, cfg)
}

// applyLocalDefaults sets the defaults for a broker on this host.
func (s *settings) applyLocalDefaults(target string) error {
	if !isLocal(target) {
		return nil
	}
	if s.plaintext == nil && s.tls == nil && s.files == (TLSFiles{}) {
		s.plaintext = new(true)
	}
	if s.tokenFile != "" || s.files.Cert != "" || s.tls != nil || isUnixSocket(target) {
		return nil
	}
	for _, address := range addressList(target) {
		path, err := writeDevCredential(address)
		if err != nil {
			return fmt.Errorf("tokenbroker: %w", err)
		}
		if path != "" {
			s.tokenFile = path
			return nil
		}
	}
	return nil
}

// devCredential returns the file with the credential that "broker dev" wrote
// for the broker at a loopback address, or "" if there is no such file. It
// returns an error if other users could have read or written it.
func writeDevCredential(address string) (path string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", nil //nolint:nilerr // not an address that broker dev serves at
	}
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the XDG specification says to ignore relative paths
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil //nolint:nilerr // nowhere to look
		}
		state = filepath.Join(home, ".local", "state")
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = append(hosts, "127.0.0.1", "::1")
	}
	for _, host := range hosts {
		path := filepath.Join(state, "tokenbroker", "dev", strings.Join([]string{host, port}, "_")+".token")
		switch private, err := isPrivateFile(path); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return "", fmt.Errorf("the credential of broker dev: %w", err)
		case !private:
			return "", fmt.Errorf("%s is not used, because other users may read or write it: remove it and restart broker dev", path)
		default:
			return path, nil
		}
	}
	return "", nil
}
