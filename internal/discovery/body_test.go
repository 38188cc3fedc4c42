package discovery_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

const mark = "\ufeff"

func zip(text string, coder func(io.Writer) io.WriteCloser) string {
	var out bytes.Buffer
	w := coder(&out)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return out.String()
}

func gzipped(text string) string {
	return zip(text, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
}

func zlibbed(text string) string {
	return zip(text, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
}

func deflated(text string) string {
	return zip(text, func(w io.Writer) io.WriteCloser {
		raw, _ := flate.NewWriter(w, flate.BestCompression)
		return raw
	})
}

// getBody serves a body with codings and gets it with a limit of 1,000 bytes.
func getBody(t *testing.T, body string, codings ...string) (string, error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Encoding"] = codings
		_, _ = io.WriteString(w, body)
	}))
	defer server.Close()
	got, _, err := discovery.Get(t.Context(), local(), server.URL, 1000)
	return string(got), err
}

func TestBodyInAContentCodingIsRead(t *testing.T) {
	const want = `{"a":"b"}`
	for name, tt := range map[string]struct {
		body    string
		codings []string
	}{
		"a byte order mark":                   {mark + want, nil},
		"identity":                            {want, []string{"identity"}},
		"an empty Content-Encoding":           {want, []string{""}},
		"gzip":                                {gzipped(want), []string{"gzip"}},
		"gzip in capitals":                    {gzipped(want), []string{" GZIP "}},
		"x-gzip":                              {gzipped(want), []string{"x-gzip"}},
		"gzip with a byte order mark":         {gzipped(mark + want), []string{"gzip"}},
		"gzip in two members":                 {gzipped(want[:3]) + gzipped(want[3:]), []string{"gzip"}},
		"deflate":                             {zlibbed(want), []string{"deflate"}},
		"deflate without the zlib format":     {deflated(want), []string{"deflate"}},
		"deflate, raw, and a byte order mark": {deflated(mark + want), []string{"deflate"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := getBody(t, tt.body, tt.codings...); err != nil || got != want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	exact := strings.Repeat(" ", 1000)
	for name, body := range map[string]string{"gzip": gzipped(exact), "deflate": zlibbed(exact)} {
		if got, err := getBody(t, body, name); err != nil || got != exact {
			t.Errorf("%s at the limit: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestBodyInAContentCodingIsRefused(t *testing.T) {
	const canary = `{"a":"canary"}`
	bomb := strings.Repeat("a", 10<<20)
	for name, tt := range map[string]struct {
		body    string
		codings []string
		says    string
	}{
		"a gzip bomb":                {gzipped(bomb), []string{"gzip"}, "more than 1000 bytes"},
		"a deflate bomb":             {zlibbed(bomb), []string{"deflate"}, "more than 1000 bytes"},
		"a raw deflate bomb":         {deflated(bomb), []string{"deflate"}, "more than 1000 bytes"},
		"one byte beyond the limit":  {gzipped(bomb[:1001]), []string{"gzip"}, "more than 1000 bytes"},
		"many empty gzip members":    {strings.Repeat(gzipped(""), 1000), []string{"gzip"}, "more than 1000 bytes"},
		"brotli":                     {canary, []string{"br"}, "unsupported Content-Encoding"},
		"a coding of no name":        {canary, []string{"canary"}, "unsupported Content-Encoding"},
		"gzip twice":                 {gzipped(gzipped(canary)), []string{"gzip", "gzip"}, "unsupported Content-Encoding"},
		"gzip and deflate":           {gzipped(zlibbed(canary)), []string{"deflate, gzip"}, "unsupported Content-Encoding"},
		"gzip that is plain":         {canary, []string{"gzip"}, "cannot be decompressed"},
		"deflate that is plain":      {canary, []string{"deflate"}, "cannot be decompressed"},
		"gzip that breaks off":       {gzipped(canary)[:25], []string{"gzip"}, "cannot be decompressed"},
		"gzip with a wrong checksum": {gzipped(canary)[:len(gzipped(canary))-8] + "canarycn", []string{"gzip"}, "cannot be decompressed"},
		"deflate that breaks off":    {zlibbed(canary)[:12], []string{"deflate"}, "cannot be decompressed"},
		"more after gzip":            {gzipped(canary) + "canary", []string{"gzip"}, "cannot be decompressed"},
		"more after deflate":         {zlibbed(canary) + "canary", []string{"deflate"}, "cannot be decompressed"},
		"more after raw deflate":     {deflated(canary) + "canary", []string{"deflate"}, "cannot be decompressed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := getBody(t, tt.body, tt.codings...)
			if err == nil {
				t.Fatalf("accepted: %.40q", got)
			}
			if fault := faultOf(t, err); fault.Unreachable || fault.Status != http.StatusOK || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%+v: %v", fault, err)
			}
		})
	}
}
