package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// bearerInterval is how long a token is used before the file is read again.
	bearerInterval = time.Second
	maxBearer      = 64 << 10
)

// bearerFile presents the token in a file.
type bearerFile struct {
	path   string
	secure bool // only over encrypted connections
	last   atomic.Pointer[cachedBearer]
}

type cachedBearer struct {
	header map[string]string // immutable
	at     time.Time
}

func newBearerFile(path string, secure bool) (*bearerFile, error) {
	b := &bearerFile{path: path, secure: secure}
	token, err := b.read()
	if err != nil {
		return nil, err
	}
	b.store(token, time.Now())
	return b, nil
}

func (b *bearerFile) read() (string, error) {
	text, err := os.ReadFile(b.path)
	if err != nil {
		return "", fmt.Errorf("the token to present: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) > maxBearer || !isBearer(token) {
		return "", errors.New("the token to present: " + b.path + " must contain exactly one bearer token")
	}
	return token, nil
}

func (b *bearerFile) store(token string, now time.Time) *cachedBearer {
	cached := &cachedBearer{map[string]string{"authorization": "Bearer " + token}, now}
	b.last.Store(cached)
	return cached
}

// GetRequestMetadata implements credentials.PerRPCCredentials. If the file
// cannot be read, for example while it is being replaced, the last token read
// is presented, and the broker decides on it.
func (b *bearerFile) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	if b.secure {
		if err := encrypted(ctx); err != nil {
			return nil, err
		}
	}
	last, now := b.last.Load(), time.Now()
	if now.Sub(last.at) < bearerInterval {
		return last.header, nil
	}
	token, err := b.read()
	if err != nil {
		return last.header, nil //nolint:nilerr // see above
	}
	return b.store(token, now).header, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b *bearerFile) RequireTransportSecurity() bool { return b.secure }

// encrypted returns an error unless the connection for the call is encrypted.
func encrypted(ctx context.Context) error {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if err := credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity); err != nil {
		return fmt.Errorf("refused to present a token over an unencrypted connection: %w", err)
	}
	return nil
}

// isBearer reports whether text is a b64token of RFC 6750 section 2.1.
func isBearer(text string) bool {
	body := strings.TrimRight(text, "=")
	if body == "" {
		return false
	}
	for _, c := range []byte(body) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("-._~+/", rune(c)) {
			return false
		}
	}
	return true
}
