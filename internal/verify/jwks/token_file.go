package jwks

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

// maxTokenFile is more than servers accept in a header, in bytes.
const maxTokenFile = 16 << 10

// readToken returns the bearer token for URL; empty if none is configured. It reads
// the file for each request, because Kubernetes replaces the token of a pod before it
// expires.
func (s *Source) readToken() (redact.String, error) {
	path := s.cfg.TokenFile
	if path == "" {
		return redact.String{}, nil
	}
	token, err := readTokenFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return redact.String{}, fmt.Errorf("the token file %s does not exist: a pod has it unless automountServiceAccountToken is false; mount it, or correct jwks_token_file", path)
	case err != nil:
		return redact.String{}, fmt.Errorf("the token file %s %w: check the program that writes it, or correct jwks_token_file", path, err)
	default:
		return token, nil
	}
}

// readTokenFile reads a bearer token. The error is the predicate of a sentence about the
// file, and quotes nothing of its content.
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

// unreadable removes the path from an error of the operating system.
func unreadable(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	return fmt.Errorf("cannot be read: %w", err)
}

// issuerDiscoveryRole is the ClusterRole of Kubernetes that lets a service account
// read the keys of the cluster.
const issuerDiscoveryRole = "system:service-account-issuer-discovery"

// explain adds advice to the error of a request for the JWK set.
func (s *Source) explain(err error) error {
	fetchErr, ok := errors.AsType[*discovery.Error](err)
	file := s.cfg.TokenFile
	switch {
	case !ok:
		return err
	case fetchErr.Status == http.StatusUnauthorized && file != "":
		return fmt.Errorf("%w: it does not accept the token in %s, which may have expired or be of another cluster; "+
			"configure the token of a service account with the ClusterRole %s", err, file, issuerDiscoveryRole)
	case fetchErr.Status == http.StatusForbidden && file != "":
		return fmt.Errorf("%w: the token in %s does not give access to the keys; in Kubernetes bind the ClusterRole %s to the broker's service account",
			err, file, issuerDiscoveryRole)
	case fetchErr.Status >= 300 && fetchErr.Status < 400:
		return fmt.Errorf("%w: the broker follows no redirect; set jwks_url to the final URL of the keys", err)
	case fetchErr.Status == http.StatusUnauthorized, fetchErr.Status == http.StatusForbidden:
		return fmt.Errorf("%w: it requires authentication for the keys; configure a file with a bearer token in jwks_token_file, beside jwks_url "+
			"(preset: kubernetes does so for the API server of a cluster)", err)
	default:
		return err
	}
}
