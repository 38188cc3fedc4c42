package verify

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

// noMaxAge stands for an answer without a max-age.
const noMaxAge = -1

var errNoKeys = errors.New("its metadata names no jwks_uri; configure the JWKS URL")

// load gets the issuer's JWK set from where it is configured to be. The error
// shows nothing of what was found there.
func (s *keySource) load(ctx context.Context) (set jose.Set, maxAge time.Duration, err error) {
	// No interceptor stands between this goroutine and the end of the process,
	// and the parser of keys is not ours.
	defer func() {
		if recover() != nil {
			s.logger.Error("loading the keys of an issuer panicked", "stack", string(debug.Stack()))
			err = errors.New("loading them failed in a way that is a defect of the broker; its log has more")
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	place, data, header, err := s.read(ctx)
	if err != nil {
		return jose.Set{}, noMaxAge, err
	}
	set, err = jose.ParseSet(data)
	if err != nil {
		return jose.Set{}, noMaxAge, fmt.Errorf("%s: %w", place, err)
	}
	return set, maxAgeOf(header), nil
}

func (s *keySource) read(ctx context.Context) (place string, data []byte, header http.Header, err error) {
	if s.cfg.JWKSFile != "" {
		if data, err = readFile(s.cfg.JWKSFile); err == nil {
			data, err = decodeFile(s.cfg.JWKSFile, data)
		}
		return s.cfg.JWKSFile, data, nil, err
	}
	url, token, err := s.place(ctx)
	if err != nil {
		return "", nil, nil, err
	}
	data, header, err = discovery.GetWithToken(tracing.Named(ctx, tracing.Keys), s.client, url, token, jose.MaxSetSize)
	return discovery.Printable(url), data, header, s.explain(err)
}

// place returns the URL of the issuer's JWK set, and the token that is sent there. A
// URL that was discovered gets no token: the metadata could name any host.
func (s *keySource) place(ctx context.Context) (url string, token redact.String, err error) {
	if s.cfg.JWKSURL != "" {
		token, err = s.readToken()
		return s.cfg.JWKSURL, token, err
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
	return io.ReadAll(io.LimitReader(file, jose.MaxSetSize+1)) // one more, to be found too long
}

// decodeFile reads a file that is compressed by gzip, or begins with a byte order
// mark, as an answer of the issuer would be read.
func decodeFile(path string, data []byte) ([]byte, error) {
	coding := ""
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b")): // RFC 1952 section 2.3.1
		coding = "gzip"
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, fmt.Errorf("%s: it begins with the byte order mark of UTF-16: save it as UTF-8", path)
	}
	plain, err := discovery.Decode(data, coding, jose.MaxSetSize)
	if err != nil {
		return nil, fmt.Errorf("%s: it looks like a gzip file and cannot be decompressed", path)
	}
	return plain, nil
}

// maxAgeOf reads Cache-Control (RFC 9111 section 5.2.2.1).
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

// report tells log and metrics what a fetch changed.
func (s *keySource) report(before, after *state) {
	if after.err != nil {
		s.metrics.failure.Inc()
		if !errors.Is(after.err, context.Canceled) { // at the end of the process
			s.logger.Warn("the keys of an issuer cannot be fetched", "error", after.err, "failures", after.failures, "keys", after.keys.Len())
		}
		return
	}
	s.metrics.success.Inc()
	s.metrics.keys.Set(float64(after.keys.Len()))
	s.metrics.skipped.Set(float64(len(after.skipped)))
	s.metrics.lastSuccess.Set(float64(after.loadedAt.UnixMilli()) / 1000)
	if before.failures > 0 {
		s.logger.Info("the keys of an issuer can be fetched again", "failures", before.failures)
	}
	s.logKeys("a key of an issuer is trusted from now on", after.keys, before.keys)
	s.logKeys("a key of an issuer is not trusted any more", before.keys, after.keys)
	if !slices.EqualFunc(before.skipped, after.skipped, sameSkipped) {
		s.logSkipped(after.skipped)
	}
}

// logKeys logs the keys that the others lack, or have other material for.
func (s *keySource) logKeys(message string, keys, others jose.Keys) {
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

func (s *keySource) logSkipped(skipped []jose.Skipped) {
	for _, entry := range skipped {
		level := slog.LevelWarn
		if errors.Is(entry.Reason, jose.ErrPrivateKey) {
			level = slog.LevelError
		}
		s.logger.Log(context.Background(), level, "an entry of an issuer's JWK set is not used", "index", entry.Index, "reason", entry.Reason)
	}
}
