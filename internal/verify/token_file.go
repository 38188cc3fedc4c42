package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// maxTokenFile is more than what servers accept in a header.
const maxTokenFile = 16 << 10

// readToken reads the token for the request of the JWK set; it is empty if none is
// configured. Kubernetes replaces the token of a pod before it expires, so it is
// read for each request.
func (s *keySource) readToken() (redact.String, error) {
	path := s.cfg.JWKSTokenFile
	if path == "" {
		return redact.String{}, nil
	}
	token, err := readTokenFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return redact.String{}, fmt.Errorf("the token file %s does not exist: a pod has it unless automountServiceAccountToken is false; mount it, or correct jwks_token_file", path)
	case err != nil:
		return redact.String{}, fmt.Errorf("the token file %s %w: see to the program that writes it, or correct jwks_token_file", path, err)
	default:
		return token, nil
	}
}

// readTokenFile reads a bearer token. The error is a predicate of the file, and
// shows nothing of its content.
func readTokenFile(path string) (redact.String, error) {
	file, err := os.Open(path) //nolint:gosec // the configuration names it
	if err != nil {
		return redact.String{}, unreadable(err)
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, maxTokenFile+1)
	defer clear(data)
	text := strings.TrimSpace(string(data))
	switch {
	case err != nil:
		return redact.String{}, unreadable(err)
	case len(data) > maxTokenFile:
		return redact.String{}, fmt.Errorf("is larger than %d bytes", maxTokenFile)
	case text == "":
		return redact.String{}, errors.New("is empty")
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return redact.String{}, errors.New("contains no bearer token, which has neither spaces nor control characters")
	default:
		return redact.New(text), nil
	}
}

// unreadable drops the path from an error of the operating system.
func unreadable(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		err = failed.Err
	}
	return fmt.Errorf("cannot be read: %w", err)
}

// issuerDiscoveryRole is the ClusterRole of Kubernetes that lets a service account
// read the keys of the cluster.
const issuerDiscoveryRole = "system:service-account-issuer-discovery"

// explain adds to the error of a request for the JWK set what to do about it.
func (s *keySource) explain(err error) error {
	fault, ok := errors.AsType[*discovery.Error](err)
	file := s.cfg.JWKSTokenFile
	switch {
	case !ok:
		return err
	case fault.Status == http.StatusUnauthorized && file != "":
		return fmt.Errorf("%w: it does not accept the token in %s, which may have expired or be of another cluster; "+
			"name the token of a service account that has the ClusterRole %s", err, file, issuerDiscoveryRole)
	case fault.Status == http.StatusForbidden && file != "":
		return fmt.Errorf("%w: the token in %s does not give access to the keys; in Kubernetes bind the ClusterRole %s to the broker's service account",
			err, file, issuerDiscoveryRole)
	case fault.Status >= 300 && fault.Status < 400:
		return fmt.Errorf("%w: the broker follows no redirect; set jwks_url to the place of the keys themselves", err)
	case fault.Status == http.StatusUnauthorized, fault.Status == http.StatusForbidden:
		return fmt.Errorf("%w: it does not publish the keys to everybody; name a file with a bearer token for it in jwks_token_file, beside jwks_url "+
			"(preset: kubernetes does so for the API server of a cluster)", err)
	default:
		return err
	}
}
