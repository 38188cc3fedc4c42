package fleet

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// screenshotsVariable names a directory into which the screenshots of docs/images are
// taken. Without it they go to a temporary one.
const screenshotsVariable = "TOKENBROKER_SCREENSHOTS"

// watchedFleet is a fleet of three replicas with TLS, whose status page is looked at.
type watchedFleet struct {
	t         *testing.T
	redis     *redistest.Server
	idp       *harness.CountingIdP
	replicas  []*harness.Broker
	authority *devca.Authority
	dir       string // of the broker's certificate
	shots     string
}

func startWatchedFleet(t *testing.T) *watchedFleet {
	t.Helper()
	f := &watchedFleet{t: t, redis: redistest.Start(t, redisOptions()), idp: harness.SimpleIdP(t, time.Hour), dir: t.TempDir(), shots: os.Getenv(screenshotsVariable)}
	if f.shots == "" {
		f.shots = t.TempDir()
	}
	authority, err := devca.New("Example CA")
	if err != nil {
		t.Fatal(err)
	}
	f.authority = authority
	ca, err := authority.Write(f.dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	f.certify(90 * 24 * time.Hour)
	secret := harness.WriteFile(t, "secret", "right")
	var config strings.Builder
	fmt.Fprintf(&config, "listen: {grpc: {address: \"127.0.0.1:0\", caller: ops}, ops: \"127.0.0.1:0\", tls: {cert: %q, key: %q}}\n",
		filepath.Join(f.dir, "broker.crt"), filepath.Join(f.dir, "broker.key"))
	config.WriteString("callers: [{name: ops, roles: [all]}]\nroles: {all: {get: [{client: \"*\", audiences: [\"*\"], scopes: [\"*\"]}]}}\naudit: {file: stdout}\nclients:\n")
	for i, name := range []string{"billing", "orders", "reports"} {
		fmt.Fprintf(&config, "  %s: {issuer: %q, client_id: abc, secret: %q, audience: %q}\n", name, f.idp.Issuer(), "file:"+secret, f.idp.Client.Audiences[i])
	}
	fmt.Fprintf(&config, "issuers: [{issuer: %q, audiences: [%q]}]\n", f.idp.Issuer(), f.idp.Client.Audiences[0])
	config.WriteString(redisConfig(t, "", f.redis.Addr()))
	file := harness.WriteFile(t, "broker.yaml", config.String()) // one for all, as in a real fleet
	for range 3 {
		b := &harness.Broker{File: file, Env: []string{"TOKENBROKER_CA=" + ca}}
		f.start(b)
		f.replicas = append(f.replicas, b)
	}
	return f
}

// start starts a replica, at any free ports, and waits until it is ready.
func (f *watchedFleet) start(b *harness.Broker) {
	f.t.Helper()
	b.Launch(f.t, "broker")
	testkit.Eventually(f.t, "the replica logs its addresses", func() bool {
		for line := range strings.Lines(b.Process.Output.String()) {
			var serving struct{ Msg, GRPC, Ops string }
			if json.Unmarshal([]byte(line), &serving) == nil && serving.Msg == "serving" {
				b.Grpc, b.Ops = serving.GRPC, serving.Ops
			}
		}
		return b.Ops != ""
	})
	b.Await(f.t)
}

// certify gives the replicas a certificate that was issued 60 days ago.
func (f *watchedFleet) certify(left time.Duration) {
	f.t.Helper()
	pair, err := f.authority.Issue(&x509.Certificate{
		NotBefore: time.Now().Add(-60 * 24 * time.Hour), NotAfter: time.Now().Add(left),
		DNSNames: []string{"broker.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, _, err := pair.Write(f.dir, "broker"); err != nil {
		f.t.Fatal(err)
	}
}

func (f *watchedFleet) url() string { return "http://" + f.replicas[0].Ops + "/" }

// page returns the page of the first replica.
func (f *watchedFleet) page() (string, error) {
	response, err := harness.Fetch(f.t, &http.Client{Timeout: harness.Patience}, http.MethodGet, f.url(), nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// shot is a screenshot to take.
type shot struct {
	File  string `json:"file"`
	Width int    `json:"width"`
	Dark  bool   `json:"dark"`
}

const desktop, phone = 1024, 390

// await waits until the page contains all words.
func (f *watchedFleet) await(words ...string) {
	f.t.Helper()
	testkit.Succeeds(f.t, "the page", func() error {
		text, err := f.page()
		if err != nil {
			return err
		}
		for _, word := range words {
			if !strings.Contains(text, word) {
				_, content, _ := strings.Cut(text, "<main>")
				return fmt.Errorf("%q is missing in %s", word, content)
			}
		}
		return nil
	})
}

// look waits until the page contains all words, and looks at it with a browser.
func (f *watchedFleet) look(name string, width int, dark, reloads bool, words ...string) {
	f.t.Helper()
	f.await(words...)
	file := filepath.Join(f.shots, "status-"+name+".png")
	argument, err := json.Marshal(map[string]any{"url": f.url(), "words": words, "reloads": reloads, "shots": []shot{{file, width, dark}}})
	if err != nil {
		f.t.Fatal(err)
	}
	script, err := filepath.Abs(filepath.Join("..", "browser", "look.mjs"))
	if err != nil {
		f.t.Fatal(err)
	}
	output, err := exec.CommandContext(f.t.Context(), "node", script, string(argument)).CombinedOutput()
	if err != nil {
		f.t.Errorf("%s: %v\n%s", name, err, output)
	}
	if info, err := os.Stat(file); err != nil || info.Size() >= 120_000 {
		f.t.Errorf("%s: no screenshot of less than 120 kB: %v, %v", name, info, err)
	}
}

// startHealthyFleet starts replicas that know their clients and revocations.
func startHealthyFleet(t *testing.T) *watchedFleet {
	t.Helper()
	for _, peer := range []string{"redis-server", "node", "chromium", "playwright-core"} {
		harness.Need(t, peer)
	}
	f := startWatchedFleet(t)
	for _, client := range []string{"billing", "orders", "reports"} {
		f.replicas[0].Get(t, client)
	}
	testkit.Eventually(t, "all replicas have loaded the revocations", func() bool {
		text, err := f.page()
		return err == nil && strings.Count(text, "0 revocations loaded") == 3
	})
	return f
}

func TestStatusPageInABrowser(t *testing.T) {
	t.Parallel()
	f := startHealthyFleet(t)
	f.look("healthy", desktop, false, true, "Everything works.", "3 alive", "(this one)", "reads and writes work", "billing", "expires in 89d")
}

func TestStatusPageOfFaultsInABrowser(t *testing.T) {
	long(t)
	t.Parallel()
	f := startHealthyFleet(t)
	f.certify(3*24*time.Hour + time.Hour)
	f.look("certificate-ending", phone, false, false, "Calls are served, but 1 warning needs attention.", "broker.example.com expires in 3d", "certificate-ending")
	f.certify(90 * 24 * time.Hour)
	f.await("Everything works.", "3 alive")

	f.replicas[2].Process.Stop(t, os.Kill)
	f.look("replica-lost", phone, true, false, "Calls are served, but 1 warning needs attention.", "has not reported for", "2 alive", "lost", "replica-lost")
	f.replicas[2].Ops = ""
	f.start(f.replicas[2])
	f.await("Everything works.", "3 alive")

	f.redis.Kill()
	f.look("redis-away", desktop, true, false, "1 problem needs action now.", "The store cannot be reached", "store-away", "1 alive, the others are unknown", "cannot be reached")
	f.redis.Restart()
	f.await("Everything works.", "3 alive")

	f.idp.Takes("another secret")
	if _, res := f.replicas[1].TryGet(t, "billing", "--audience", f.idp.Client.Audiences[40]); res.Code == 0 {
		t.Fatal("the IdP accepts the wrong secret")
	}
	f.look("client-refused", desktop, false, false, "1 problem needs action now.", "The IdP refuses the credentials of client billing", "refused by the IdP", "secret-refused", "broker secret rotate")
}
