package jwks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// noMaxAge is the max-age of a response that has none.
const noMaxAge = -1

var errNoKeys = errors.New("its metadata names no jwks_uri; configure the JWKS URL")

// load reads the issuer's JWK set from its configured source. The error quotes nothing
// of the content.
func (s *Source) load(ctx context.Context) (set jose.Set, maxAge time.Duration, err error) {
	// A panic in this goroutine would end the process, and a library parses the keys.
	defer func() {
		if recover() != nil {
			s.logger.Error("loading the keys of an issuer panicked", "stack", string(debug.Stack()))
			err = errors.New("loading them failed because of a bug in the broker; its log has the details")
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	doc, err := s.read(ctx)
	if err != nil {
		return jose.Set{}, noMaxAge, err
	}
	set, err = jose.ParseSet(doc.data)
	if err != nil {
		return jose.Set{}, noMaxAge, fmt.Errorf("%s: %w", doc.source, err)
	}
	return set, maxAgeOf(doc.header), nil
}

// jwksDocument is the text of a JWK set.
type jwksDocument struct {
	source string // a file or a printable URL
	data   []byte
	header http.Header // nil for a file
}

func (s *Source) read(ctx context.Context) (jwksDocument, error) {
	if s.cfg.File != "" {
		data, err := readFile(s.cfg.File)
		if err == nil {
			data, err = decodeFile(s.cfg.File, data)
		}
		return jwksDocument{source: s.cfg.File, data: data}, err
	}
	url, token, err := s.jwksURL(ctx)
	if err != nil {
		return jwksDocument{}, err
	}
	data, header, err := discovery.GetWithToken(tracing.Named(ctx, tracing.Keys), s.cfg.HTTP, url, token, jose.MaxSetSize)
	return jwksDocument{source: discovery.Printable(url), data: data, header: header}, s.explain(err)
}

// jwksURL returns the URL of the issuer's JWK set and the bearer token for it. A
// discovered URL gets no token, because the metadata could name any host.
func (s *Source) jwksURL(ctx context.Context) (url string, token redact.String, err error) {
	if s.cfg.URL != "" {
		token, err = s.readToken()
		return s.cfg.URL, token, err
	}
	metadata, err := s.cfg.Discovery.Metadata(ctx)
	if err != nil {
		return "", redact.String{}, err
	}
	if url, err = metadata.JWKSURI.URL(); err == nil && url == "" {
		err = errNoKeys
	}
	return url, redact.String{}, err
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	return io.ReadAll(io.LimitReader(file, jose.MaxSetSize+1)) // one more byte, so that ParseSet refuses a longer file
}

// decodeFile decompresses a gzip file and removes a byte order mark, as
// [discovery.ReadBody] does for a response.
func decodeFile(path string, data []byte) ([]byte, error) {
	coding := ""
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")): // RFC 1952 section 2.3.1
		coding = "gzip"
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, fmt.Errorf("%s: it is UTF-16, by its byte order mark: save it as UTF-8", path)
	}
	plain, err := discovery.Decode(data, coding, jose.MaxSetSize)
	if err != nil {
		return nil, fmt.Errorf("%s: it looks like a gzip file and cannot be decompressed", path)
	}
	return plain, nil
}

// maxAgeOf returns the max-age of Cache-Control (RFC 9111 section 5.2.2.1).
func maxAgeOf(header http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
		if strings.EqualFold(name, "max-age") && err == nil {
			return time.Duration(seconds) * time.Second
		}
	}
	return noMaxAge
}

// report logs and counts the result of a fetch.
func (s *Source) report(before, after *state) {
	if after.err != nil {
		s.metrics.Failure.Inc()
		if !errors.Is(after.err, context.Canceled) { // as when the process stops
			s.logger.Warn("the keys of an issuer cannot be fetched", "error", after.err, "failures", after.failures, "keys", after.keys.Len())
		}
		return
	}
	s.metrics.Success.Inc()
	s.metrics.Keys.Set(float64(after.keys.Len()))
	s.metrics.Skipped.Set(float64(len(after.skipped)))
	s.metrics.LastSuccess.Set(float64(after.loadedAt.UnixMilli()) / 1000)
	if before.failures > 0 {
		s.logger.Info("the keys of an issuer can be fetched again", "failures", before.failures)
	}
	s.logKeys("a key of an issuer is trusted from now on", after.keys, before.keys)
	s.logKeys("a key of an issuer is no longer trusted", before.keys, after.keys)
	if !slices.EqualFunc(before.skipped, after.skipped, sameSkipped) {
		s.logSkipped(after.skipped)
	}
}

// logKeys logs each key that others lacks or has with other key material.
func (s *Source) logKeys(message string, keys, others jose.Keys) {
	for key := range keys.All() {
		same := func(other *jose.Key) bool { return other.ID() == key.ID() && other.Thumbprint() == key.Thumbprint() }
		if !slices.ContainsFunc(slices.Collect(others.All()), same) {
			s.logger.Info(message, "kid", key.ID(), "thumbprint", key.Thumbprint())
		}
	}
}

func sameSkipped(a, b jose.Skipped) bool {
	return a.Index == b.Index && a.Reason.Error() == b.Reason.Error()
}

func (s *Source) logSkipped(skipped []jose.Skipped) {
	for _, entry := range skipped {
		level := slog.LevelWarn
		if errors.Is(entry.Reason, jose.ErrPrivateKey) {
			level = slog.LevelError
		}
		s.logger.Log(context.Background(), level, "an entry of an issuer's JWK set is not used", "index", entry.Index, "reason", entry.Reason)
	}
}
