package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/devca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// must makes what cannot fail where tests run.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// listener is the files of a listener in a directory of their own.
type listener struct {
	ca, callers *devca.Authority // of its certificate, and of those of its callers
	config      certs.Config
}

func newListener(t *testing.T) *listener {
	t.Helper()
	dir := t.TempDir()
	l := &listener{ca: must(devca.New("ca")), callers: must(devca.New("callers"))}
	l.config = certs.Config{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}
	l.renew(t, "broker")
	write(t, l.config.ClientCA, l.callers.PEM())
	return l
}

func named(name string) *x509.Certificate { return &x509.Certificate{DNSNames: []string{name}} }

// renew gives the listener a certificate of that name.
func (l *listener) renew(t *testing.T, name string) {
	t.Helper()
	pair := must(l.ca.Issue(named(name)))
	write(t, l.config.Cert, pair.CertPEM())
	write(t, l.config.Key, must(pair.KeyPEM()))
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// connect makes a connection and sends a word over it: only then does a client of
// TLS 1.3 know that it was let in.
func connect(t *testing.T, by, client *tls.Config) (state tls.ConnectionState, errClient, errServer error) {
	t.Helper()
	near, far := net.Pipe()
	server, dialed := tls.Server(far, by), tls.Client(near, client)
	done := make(chan error, 1)
	go func() {
		errServer := server.Handshake()
		if errServer == nil {
			_, errServer = server.Write([]byte("hello"))
		}
		done <- errServer
		_ = far.Close()
	}()
	if errClient = dialed.Handshake(); errClient == nil {
		_, errClient = dialed.Read(make([]byte, 5))
	}
	_ = near.Close()
	return dialed.ConnectionState(), errClient, <-done
}

// presents is the name in the certificate that a source presents now.
func (l *listener) presents(t *testing.T, source *certs.Source) string {
	t.Helper()
	state, err, _ := connect(t, source.TLS(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].DNSNames[0]
}

func TestCurrentCertificateIsPresented(t *testing.T) {
	l := newListener(t)
	source := must(certs.Open(l.config))
	caller := must(l.callers.Issue(named("caller")))
	config := &tls.Config{RootCAs: l.ca.Pool(), ServerName: "broker", Certificates: []tls.Certificate{caller.TLS()}}
	state, errClient, errServer := connect(t, source.TLS(), config)
	if errClient != nil || errServer != nil {
		t.Fatal(errClient, errServer)
	}
	if state.Version != tls.VersionTLS13 || state.DidResume {
		t.Errorf("version %x, resumed: %v", state.Version, state.DidResume)
	}
	status := source.Status()
	if status.Name != "broker" || time.Until(status.Expires) < 300*24*time.Hour || len(status.Authorities) != 1 ||
		status.Authorities[0].Name != "CN=callers" || len(status.Warnings) > 0 || status.Failing {
		t.Errorf("status: %+v", status)
	}
}

func TestClientCertificatesAreRequestedAsConfigured(t *testing.T) {
	l := newListener(t)
	untrusted := must(must(devca.New("strangers")).Issue(named("caller"))).TLS()
	always := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &untrusted, nil }
	old := must(l.callers.Issue(&x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})).TLS()
	server := must(l.callers.Issue(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})).TLS()
	for name, tt := range map[string]struct {
		client *tls.Config
		change func(*certs.Config)
		good   bool
	}{
		"no certificate":             {&tls.Config{}, nil, true},
		"one of another authority":   {&tls.Config{GetClientCertificate: always}, nil, false},
		"one that expired":           {&tls.Config{Certificates: []tls.Certificate{old}}, nil, false},
		"one of a server":            {&tls.Config{Certificates: []tls.Certificate{server}}, nil, false},
		"nobody is asked":            {&tls.Config{GetClientCertificate: always}, func(c *certs.Config) { c.ClientCA = "" }, true},
		"TLS 1.2":                    {&tls.Config{MaxVersion: tls.VersionTLS12}, nil, false},
		"TLS 1.2 where it is spoken": {&tls.Config{MaxVersion: tls.VersionTLS12}, func(c *certs.Config) { c.MinVersion = tls.VersionTLS12 }, true},
		"TLS 1.1":                    {&tls.Config{MaxVersion: tls.VersionTLS11}, func(c *certs.Config) { c.MinVersion = tls.VersionTLS12 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			config := l.config
			if tt.change != nil {
				tt.change(&config)
			}
			tt.client.RootCAs, tt.client.ServerName = l.ca.Pool(), "broker"
			if _, errClient, errServer := connect(t, must(certs.Open(config)).TLS(), tt.client); (errClient == nil) != tt.good || (errServer == nil) != tt.good {
				t.Errorf("client: %v; server: %v", errClient, errServer)
			}
		})
	}
}

func TestSessionsAreNotResumed(t *testing.T) {
	l := newListener(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := l.config
		config.MinVersion = version
		server := must(certs.Open(config)).TLS()
		client := &tls.Config{RootCAs: l.ca.Pool(), ServerName: "broker", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for range 3 {
			if state, err, _ := connect(t, server, client); err != nil || state.DidResume {
				t.Errorf("version %x: resumed: %v, %v", version, state.DidResume, err)
			}
		}
	}
}

func TestOpenReportsEachProblem(t *testing.T) {
	now := time.Now()
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
	for name, tt := range map[string]struct {
		spoil func(l *listener)
		says  []string // FILE: ...
	}{
		"no certificate file": {func(l *listener) { _ = os.Remove(l.config.Cert) }, []string{"tls.crt: there is no such file"}},
		"no files at all": {func(l *listener) {
			for _, path := range []string{l.config.Cert, l.config.Key, l.config.ClientCA} {
				_ = os.Remove(path)
			}
		}, []string{"tls.crt: there is no such file", "tls.key: there is no such file", "ca.crt: there is no such file"}},
		"a directory":          {func(l *listener) { l.config.Key = filepath.Dir(l.config.Key) }, []string{": it is a directory: name the file in it"}},
		"an endless file":      {func(l *listener) { l.config.Cert = "/dev/zero" }, []string{"/dev/zero: it is larger than 1 MiB"}},
		"an empty certificate": {func(l *listener) { write(t, l.config.Cert, nil) }, []string{"tls.crt: it holds no certificate in PEM form"}},
		"an empty key":         {func(l *listener) { write(t, l.config.Key, nil) }, []string{"tls.key: it holds no private key in PEM form"}},
		"swapped":              {func(l *listener) { l.config.Cert, l.config.Key = l.config.Key, l.config.Cert }, []string{"tls.key: it holds a private key, and no certificate", "tls.crt: it holds a certificate, and no private key"}},
		"an encrypted key":     {func(l *listener) { write(t, l.config.Key, encrypted) }, []string{"tls.key: its private key is encrypted"}},
		"a broken key": {func(l *listener) {
			write(t, l.config.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
		}, []string{"tls.key: its private key is broken"}},
		"a broken certificate": {func(l *listener) {
			write(t, l.config.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
		}, []string{"tls.crt: certificate 1 in it is broken"}},
		"the key of another":  {func(l *listener) { write(t, l.config.Key, must(must(l.ca.Issue(named("other"))).KeyPEM())) }, []string{"tls.key: it is not the key of the first certificate in"}},
		"a chain upside down": {func(l *listener) { write(t, l.config.Cert, append(l.ca.PEM(), must(os.ReadFile(l.config.Cert))...)) }, []string{"tls.key: it is not the key of the first certificate in"}},
		"expired": {func(l *listener) {
			l.issue(t, &x509.Certificate{DNSNames: []string{"broker"}, NotAfter: now.Add(-time.Minute), NotBefore: now.Add(-time.Hour)})
		}, []string{`tls.crt: certificate 1 in it, "broker", expired at`}},
		"not yet": {func(l *listener) {
			l.issue(t, &x509.Certificate{DNSNames: []string{"broker"}, NotBefore: now.Add(time.Hour)})
		}, []string{`tls.crt: certificate 1 in it, "broker", is not valid before`}},
		"for clients only": {func(l *listener) {
			l.issue(t, &x509.Certificate{DNSNames: []string{"broker"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}, []string{`tls.crt: its first certificate, "broker", is not for servers`}},
		"no authority":          {func(l *listener) { write(t, l.config.ClientCA, must(os.ReadFile(l.config.Cert))) }, []string{`ca.crt: certificate 1 in it, "broker", is not an authority`}},
		"authorities, a key":    {func(l *listener) { write(t, l.config.ClientCA, must(os.ReadFile(l.config.Key))) }, []string{"ca.crt: it holds a private key, and no certificate"}},
		"both sides are broken": {func(l *listener) { write(t, l.config.Cert, nil); write(t, l.config.ClientCA, nil) }, []string{"tls.crt: it holds no certificate", "ca.crt: it holds no certificate"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newListener(t)
			tt.spoil(l)
			_, err := certs.Open(l.config)
			if err == nil {
				t.Fatal("it was accepted")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.says) {
				t.Fatalf("%d lines, want %d:\n%v", len(lines), len(tt.says), err)
			}
			for i, want := range tt.says {
				if !strings.HasPrefix(lines[i], "/") || !strings.Contains(lines[i], want) {
					t.Errorf("%s\nwant: %s", lines[i], want)
				}
			}
			key, _ := pem.Decode(must(os.ReadFile(newListener(t).config.Key)))
			if key != nil && strings.Contains(err.Error(), string(key.Bytes)) {
				t.Error("the error repeats the key")
			}
		})
	}
}

// issue gives the listener a certificate like template.
func (l *listener) issue(t *testing.T, template *x509.Certificate) {
	t.Helper()
	pair := must(l.ca.Issue(template))
	write(t, l.config.Cert, pair.CertPEM())
	write(t, l.config.Key, must(pair.KeyPEM()))
}

func TestExpiredAuthorityIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener(t)
		time.Sleep(devca.Lifetime - 24*time.Hour)
		l.ca = must(devca.New("ca"))
		l.renew(t, "broker")
		young := must(devca.New("young"))
		write(t, l.config.ClientCA, append(l.callers.PEM(), young.PEM()...))
		time.Sleep(48 * time.Hour)
		status := must(certs.Open(l.config)).Status()
		if len(status.Authorities) != 1 || status.Authorities[0].Name != "CN=young" || len(status.Warnings) != 1 || !strings.Contains(status.Warnings[0], `"CN=callers" has expired`) {
			t.Errorf("status: %+v", status)
		}
		write(t, l.config.ClientCA, l.callers.PEM())
		if _, err := certs.Open(l.config); err == nil || !strings.Contains(err.Error(), "all authorities in it have expired (CN=callers)") {
			t.Errorf("only expired ones: %v", err)
		}
	})
}

func TestReadableKeyIsWarnedOf(t *testing.T) {
	l := newListener(t)
	if err := os.Chmod(l.config.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if warnings := must(certs.Open(l.config)).Status().Warnings; len(warnings) != 1 || !strings.Contains(warnings[0], "make it 0600") {
		t.Errorf("warnings: %v", warnings)
	}
}

// tale is what Poll told.
type tale struct {
	mu    sync.Mutex
	lines []string
}

func (t *tale) add(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		err = errors.New("changed")
	}
	t.lines = append(t.lines, err.Error())
}

func (t *tale) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

// follow runs Poll and collects what it tells. Time is that of the bubble.
func follow(t *testing.T, source *certs.Source) (events *tale, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, done := &tale{}, make(chan struct{})
	go func() {
		defer close(done)
		source.Poll(ctx, events.add)
	}()
	return events, func() { cancel(); <-done }
}

// polls lets some polls pass.
func polls(n int) {
	time.Sleep(time.Duration(n)*certs.PollInterval + certs.PollInterval/2)
	synctest.Wait()
	time.Sleep(certs.PollInterval / 2)
}

func TestReplacementIsUsedWithinThreePolls(t *testing.T) {
	swap := func(t *testing.T, l *listener, name string) { // as the kubelet does
		t.Helper()
		dir := filepath.Join(filepath.Dir(l.config.Cert), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := must(l.ca.Issue(named(name))).Write(dir, "tls"); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "ca.crt"), l.callers.PEM())
		link := filepath.Join(filepath.Dir(l.config.Cert), "..data")
		if err := errors.Join(os.Symlink(name, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(t *testing.T, l *listener, name string){
		"in place": func(t *testing.T, l *listener, name string) { t.Helper(); l.renew(t, name) },
		"by rename": func(t *testing.T, l *listener, name string) {
			t.Helper()
			if _, _, err := must(l.ca.Issue(named(name))).Write(filepath.Dir(l.config.Cert), "tls"); err != nil {
				t.Fatal(err)
			}
		},
		"by symbolic links": swap,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newListener(t)
				if name == "by symbolic links" {
					swap(t, l, "first")
					for _, path := range []*string{&l.config.Cert, &l.config.Key, &l.config.ClientCA} {
						*path = filepath.Join(filepath.Dir(*path), "..data", filepath.Base(*path))
					}
				}
				source := must(certs.Open(l.config))
				events, stop := follow(t, source)
				trusted := source.Authorities()
				for _, next := range []string{"second", "third"} {
					if name == "by symbolic links" {
						link := *l
						link.config.Cert = filepath.Join(filepath.Dir(filepath.Dir(l.config.Cert)), "tls.crt")
						replace(t, &link, next)
					} else {
						replace(t, l, next)
					}
					polls(3)
					if got := l.presents(t, source); got != next {
						t.Errorf("presented: %s, want %s", got, next)
					}
				}
				stop()
				if len(events.all()) != 2 || source.Status().Applied != 2 || source.Status().Refused != 0 {
					t.Errorf("told: %v, status: %+v", events.all(), source.Status())
				}
				if source.Authorities() != trusted {
					t.Error("another generation of the same authorities")
				}
			})
		})
	}
}

func TestBrokenFilesAreReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener(t)
		source := must(certs.Open(l.config))
		events, stop := follow(t, source)
		defer stop()
		polls(2)
		good := must(os.ReadFile(l.config.Cert))
		for _, broken := range []struct {
			spoil func()
			says  string
		}{
			{func() { write(t, l.config.Cert, good[:len(good)/2]) }, "it holds no certificate"},
			{func() {
				l.issue(t, &x509.Certificate{NotAfter: time.Now().Add(-time.Minute), NotBefore: time.Now().Add(-time.Hour)})
			}, "expired at"},
			{func() { write(t, l.config.Cert, must(l.ca.Issue(named("other"))).CertPEM()) }, "it is not the key of the first certificate"},
			{func() { _ = os.Remove(l.config.Cert) }, "there is no such file"},
		} {
			broken.spoil()
			polls(20)
			if got := l.presents(t, source); got != "broker" || !source.Status().Failing {
				t.Errorf("%s: presented: %s, status %+v", broken.says, got, source.Status())
			}
			if last := events.all()[len(events.all())-1]; !strings.Contains(last, broken.says) {
				t.Errorf("told: %s, want: %s", last, broken.says)
			}
		}
		if len(events.all()) != 4 || source.Status().Refused != 4 {
			t.Errorf("told %d times, status %+v:\n%s", len(events.all()), source.Status(), strings.Join(events.all(), "\n"))
		}
		l.renew(t, "mended")
		polls(3)
		if got := l.presents(t, source); got != "mended" || source.Status().Failing || len(events.all()) != 5 {
			t.Errorf("presented: %s, status %+v, told %v", got, source.Status(), events.all())
		}
	})
}

func TestRestoredFilesEndTheFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener(t)
		source := must(certs.Open(l.config))
		_, stop := follow(t, source)
		defer stop()
		good := must(os.ReadFile(l.config.Cert))
		write(t, l.config.Cert, nil)
		polls(4)
		if !source.Status().Failing {
			t.Error("not failing")
		}
		write(t, l.config.Cert, good)
		polls(3)
		if source.Status().Failing || source.Status().Applied != 0 {
			t.Errorf("status %+v", source.Status())
		}
	})
}

func TestFutureCertificateIsUsedOnceValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener(t)
		source := must(certs.Open(l.config))
		events, stop := follow(t, source)
		defer stop()
		l.issue(t, &x509.Certificate{DNSNames: []string{"later"}, NotBefore: time.Now().Add(time.Minute)})
		polls(10)
		if got := l.presents(t, source); got != "broker" || len(events.all()) != 1 {
			t.Errorf("presented: %s, told %v", got, events.all())
		}
		time.Sleep(time.Minute)
		if got := l.presents(t, source); got != "later" || source.Status().Failing {
			t.Errorf("presented: %s, status %+v", got, source.Status())
		}
	})
}

func TestHalfWrittenFileIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener(t)
		one, two := must(devca.New("one")), must(devca.New("two"))
		source := must(certs.Open(l.config))
		events, stop := follow(t, source)
		defer stop()
		time.Sleep(certs.PollInterval / 2) // between two polls
		for range 5 {                      // each state is a good file, and none of them stays
			for _, half := range [][]byte{one.PEM(), slices.Concat(one.PEM(), two.PEM())} {
				write(t, l.config.ClientCA, half)
				time.Sleep(certs.PollInterval)
			}
		}
		if len(events.all()) > 0 {
			t.Errorf("told: %v", events.all())
		}
		polls(2)
		if n := len(source.Status().Authorities); n != 2 || len(events.all()) != 1 {
			t.Errorf("%d authorities", n)
		}
	})
}

func TestReloadActsAtOnce(t *testing.T) {
	l := newListener(t)
	source := must(certs.Open(l.config))
	if changed, err := source.Reload(); changed || err != nil {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
	l.renew(t, "second")
	if changed, err := source.Reload(); !changed || err != nil || l.presents(t, source) != "second" {
		t.Errorf("%v, %v, presented %s", changed, err, l.presents(t, source))
	}
	write(t, l.config.Key, nil)
	if changed, err := source.Reload(); changed || err == nil || l.presents(t, source) != "second" || !source.Status().Failing {
		t.Errorf("%v, %v, presented %s, status %+v", changed, err, l.presents(t, source), source.Status())
	}
}

func TestOtherAuthoritiesAreAnotherGeneration(t *testing.T) {
	l := newListener(t)
	source := must(certs.Open(l.config))
	caller := must(must(l.callers.Below("between", time.Time{})).Issue(named("caller")))
	chain := []*x509.Certificate{caller.Certificate()}
	for _, der := range caller.TLS().Certificate[1:] {
		chain = append(chain, must(x509.ParseCertificate(der)))
	}
	now, first := time.Now(), source.Authorities()
	until, err := first.Verify(chain, now)
	if err != nil || !until.Equal(l.callers.Certificate().NotAfter) && !until.Equal(chain[0].NotAfter) && !until.Equal(chain[1].NotAfter) {
		t.Errorf("until %v, %v", until, err)
	}
	if _, err := first.Verify(chain, now.Add(2*devca.Lifetime)); err == nil {
		t.Error("a chain that ended is good")
	}
	next := must(devca.New("next"))
	write(t, l.config.ClientCA, slices.Concat(next.PEM(), l.callers.PEM()))
	must(source.Reload())
	second := source.Authorities()
	if _, err := second.Verify(chain, now); second == first || err != nil {
		t.Errorf("with another authority beside it: %v", err)
	}
	write(t, l.config.ClientCA, next.PEM())
	must(source.Reload())
	if _, err := source.Authorities().Verify(chain, now); err == nil {
		t.Error("good by an authority that did not issue it")
	}
}

// The end of a chain is that of its first certificate to end, and of several
// chains the last one's counts.
func TestUntil(t *testing.T) {
	at := func(hours ...int) (chain []*x509.Certificate) {
		for _, h := range hours {
			chain = append(chain, &x509.Certificate{NotAfter: time.Unix(int64(h)*3600, 0)})
		}
		return chain
	}
	for _, tt := range []struct {
		chains [][]*x509.Certificate
		want   int
	}{
		{[][]*x509.Certificate{at(5)}, 5},
		{[][]*x509.Certificate{at(5, 3, 9)}, 3},
		{[][]*x509.Certificate{at(5, 3, 9), at(5, 4)}, 4},
	} {
		if got := new(certs.Authorities).Until(tt.chains); got.Unix() != int64(tt.want)*3600 {
			t.Errorf("%v, want %d h", got, tt.want)
		}
	}
}
