package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
)

const (
	bareCommand    = "bare"
	requestCommand = "request"
)

// bare serves requests as the least server does: an empty response with status 200.
func bare(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: bench %s LISTEN", bareCommand)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// request puts load on the server at URL, each request with the token in FILE, and prints
// the outcome as JSON. Each caller has a connection of its own.
func request(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(requestCommand, flag.ContinueOnError)
	length := flags.Duration("for", time.Second, "how long")
	file := flags.String("token", "", "present the token in `FILE`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("usage: bench %s [-for 1s] -token FILE URL", requestCommand)
	}
	token, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	do := func(ctx context.Context, _ tokenbrokerv1.TokenBrokerServiceClient) error {
		return get(ctx, client, flags.Arg(0), string(token))
	}
	return json.NewEncoder(os.Stdout).Encode(load(ctx, make([]tokenbrokerv1.TokenBrokerServiceClient, 1), do, *length))
}

// patient returns a client for single requests.
func patient() *http.Client { return &http.Client{Timeout: 10 * time.Second} }

// get makes a request with a token. Any status but 200 is an error.
func get(ctx context.Context, client *http.Client, url, token string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("the request was refused: %s", answer.Status)
	}
	return errors.Join(err, answer.Body.Close())
}

// program is a server that others wrote. It verifies the token of each request, or, as
// nginx does here, serves a file as long as a token.
type program struct {
	label    string
	command  string
	args     []string
	packages string // that Debian has the command in
	needs    string // a file of those packages, besides the command
	config   string // a template
}

// programs returns the servers to compare with. $ stands for the configuration file.
func programs() []program {
	return []program{
		{
			label: "HAProxy, jwt_verify", command: "haproxy", args: []string{"-db", "-f", "$"}, packages: "haproxy",
			config: `defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend verify
  bind {{.Address}}
  http-request deny deny_status 401 unless { http_auth_bearer,jwt_payload_query('$.iss') -m str {{.Issuer}} }
  http-request deny deny_status 401 unless { http_auth_bearer,jwt_payload_query('$.aud') -m str {{.Audience}} }
  http-request set-var(txn.exp) http_auth_bearer,jwt_payload_query('$.exp','int')
  http-request deny deny_status 401 if { date,neg,add(txn.exp) -m int le 0 }
  http-request deny deny_status 401 unless { http_auth_bearer,jwt_verify(RS256,"{{.Dir}}/key.pem") 1 }
  http-request return status 200
`,
		},
		{
			label: "Apache, mod_oauth2", command: "apache2", args: []string{"-DFOREGROUND", "-f", "$"}, packages: "apache2 libapache2-mod-oauth2",
			needs: "/usr/lib/apache2/modules/mod_oauth2.so",
			config: `ServerRoot /usr/lib/apache2
ServerName localhost
Listen {{.Address}}
PidFile {{.Dir}}/apache.pid
ErrorLog {{.Dir}}/apache.log
LogLevel error
Mutex pthread
User www-data
Group www-data
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authn_core_module modules/mod_authn_core.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule authz_user_module modules/mod_authz_user.so
LoadModule dir_module modules/mod_dir.so
LoadModule oauth2_module modules/mod_oauth2.so
MaxKeepAliveRequests 0
KeepAliveTimeout 60
DocumentRoot {{.Dir}}/www
<Location />
  AuthType oauth2
  OAuth2TokenVerify jwks_uri {{.Keys}}
  Require oauth2_claim iss:{{.Issuer}}
</Location>
`,
		},
		{
			label: "nginx, a file of 900 B", command: "nginx", args: []string{"-c", "$"}, packages: "nginx",
			config: `daemon off;
worker_processes auto;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx.log;
events {}
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {{.Dir}}/body; proxy_temp_path {{.Dir}}/proxy; fastcgi_temp_path {{.Dir}}/fastcgi; uwsgi_temp_path {{.Dir}}/uwsgi; scgi_temp_path {{.Dir}}/scgi;
  server { listen {{.Address}}; root {{.Dir}}/www; }
}
`,
		},
	}
}

// installed reports whether the program can be started.
func (p program) installed() bool {
	_, err := exec.LookPath(p.command)
	if err == nil && p.needs != "" {
		_, err = os.Stat(p.needs)
	}
	return err == nil
}

// material is what the configurations of programs refer to.
type material struct {
	Address, Issuer, Keys, Audience, Dir string
}

// start starts the program with its configuration in m.Dir, and returns when it serves.
func (p program) start(ctx context.Context, m material, token string) (*rival, error) {
	var err error
	if m.Address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := template.Must(template.New("").Parse(p.config)).Execute(&text, m); err != nil {
		return nil, err
	}
	path := filepath.Join(m.Dir, p.command+".conf")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return nil, err
	}
	args := slices.Clone(p.args)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$", path)
	}
	return startRival(ctx, p.label, "http://"+m.Address+"/", token, p.command, args...)
}

// rival is a server that is compared over HTTP.
type rival struct {
	*process

	label, url string
	samples    []sample
}

// startRival starts a server and returns when it accepts the token.
func startRival(ctx context.Context, label, url, token, command string, args ...string) (*rival, error) {
	started, err := launch(ctx, command, args...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(started.alive, time.Minute)
	defer cancel()
	for {
		err := get(ctx, patient(), url, token)
		if err == nil {
			return &rival{process: started, label: label, url: url}, nil
		}
		if wait(ctx, 10*time.Millisecond) != nil {
			started.stop()
			return nil, fmt.Errorf("%s does not accept a good token: %w", label, errors.Join(context.Cause(ctx), err))
		}
	}
}

// peers are the servers of a comparison, the bare one first.
type peers struct {
	dir    string
	rivals []*rival
	// missing says which programs are not installed.
	missing string
}

func (p *peers) stop() {
	for _, r := range p.rivals {
		r.stop()
	}
	_ = os.RemoveAll(p.dir)
}

func (p *peers) tokenFile() string { return filepath.Join(p.dir, "token") }

// comparePeers drives the broker's /verify, a bare server and the installed programs with
// the same token, over HTTP/1.1 in plaintext.
func (b *bench) comparePeers(ctx context.Context) (string, error) {
	p, err := b.startPeers(ctx)
	defer p.stop()
	if err != nil {
		return "", err
	}
	for round := range b.rounds {
		for i := range p.rivals { // another one begins each round
			if err := b.measureRival(ctx, p.rivals[(i+round)%len(p.rivals)], p.tokenFile()); err != nil {
				return "", err
			}
		}
	}
	return peerTable(p.rivals) + p.missing, nil
}

// startPeers starts the bare server, the broker and the installed programs. The caller
// stops what was started, after an error as well.
func (b *bench) startPeers(ctx context.Context) (*peers, error) {
	p := &peers{}
	address, err := freeAddress(ctx)
	if err != nil {
		return p, err
	}
	broker, err := b.startBroker(ctx, setting{idp: b.idp, clients: 1, http: address})
	if err != nil {
		return p, err
	}
	p.rivals = append(p.rivals, &rival{process: broker.process, label: "broker, /verify", url: "http://" + address + "/verify?scope=read"})
	if p.dir, err = os.MkdirTemp("", "tokenbroker-bench-peers-"); err != nil { // outside b.dir, because Apache runs as another user
		return p, err
	}
	token, err := b.material(ctx, broker, p)
	if err != nil {
		return p, err
	}
	if address, err = freeAddress(ctx); err != nil {
		return p, err
	}
	first, err := startRival(ctx, "bare net/http", "http://"+address+"/", token, b.self, bareCommand, address)
	if err != nil {
		return p, err
	}
	p.rivals = slices.Insert(p.rivals, 0, first)
	for _, one := range programs() {
		if !one.installed() {
			p.missing += fmt.Sprintf("%s: not measured, because it is not installed (apt-get install %s)\n", one.label, one.packages)
			continue
		}
		r, err := one.start(ctx, material{Issuer: b.idp.Issuer(), Keys: b.idp.Issuer() + devidp.JWKSPath, Audience: audience, Dir: p.dir}, token)
		if err != nil {
			return p, err
		}
		p.rivals = append(p.rivals, r)
	}
	return p, nil
}

// material writes the files that the programs use, and returns the token.
func (b *bench) material(ctx context.Context, broker *server, p *peers) (token string, err error) {
	connection, err := connect(broker.address, broker.proof)
	if err != nil {
		return "", err
	}
	defer func() { _ = connection.Close() }()
	answer, err := fetch(ctx, newPeer(connection), &tokenbrokerv1.GetTokenRequest{ClientName: clientName(0)})
	if err != nil {
		return "", err
	}
	token = answer.GetAccessToken()
	first, err := firstKey(ctx, b.idp.Issuer()+devidp.JWKSPath)
	if err != nil {
		return "", err
	}
	public, err := first.public()
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	www := filepath.Join(p.dir, "www")
	return token, errors.Join(
		os.Mkdir(www, 0o755), os.Chmod(p.dir, 0o755), //nolint:gosec // Apache reads it as another user
		os.WriteFile(filepath.Join(www, "index.html"), []byte(strings.Repeat("x", 900)), 0o644),
		os.WriteFile(filepath.Join(p.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600),
		os.WriteFile(p.tokenFile(), []byte(token), 0o600))
}

func (b *bench) measureRival(ctx context.Context, r *rival, token string) error {
	before, err := r.cpuOfAll()
	if err != nil {
		return err
	}
	var o outcome
	if err := b.load(ctx, b.length, &o, requestCommand, "-for", b.length.String(), "-token", token, r.url); err != nil {
		return fmt.Errorf("driving %s: %w", r.label, err)
	}
	if err := o.check(r.label); err != nil {
		return err
	}
	after, err := r.cpuOfAll()
	if err != nil {
		return err
	}
	r.samples = append(r.samples, sample{
		cpu:  float64(after-before) / float64(time.Microsecond) / float64(o.Calls),
		rate: float64(o.Calls) / o.Seconds, p50: o.P50, p99: o.P99, calls: o.Calls,
	})
	return nil
}

// cpuOfAll returns the CPU time of the process and of its workers.
func (p *process) cpuOfAll() (time.Duration, error) {
	sum, err := p.cpu()
	if err != nil {
		return 0, err
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.pid))
	if err != nil {
		return 0, err
	}
	for text := range strings.FieldsSeq(string(children)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		more, err := (&process{pid: pid}).cpuOfAll()
		if err != nil {
			return 0, err
		}
		sum += more
	}
	return sum, nil
}

func peerTable(rivals []*rival) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-26s %12s %9s %8s %8s  %s\n", "HTTP/1.1, the same token", "CPU us/call", "calls/s", "p50 us", "p99 us", "CPU ratio to bare")
	cpu := func(s sample) float64 { return s.cpu }
	bare := medianOf(rivals[0].samples, cpu)
	for _, r := range rivals {
		fmt.Fprintf(&text, "%-26s %12.1f %9.0f %8.0f %8.0f  %.2f\n", r.label, medianOf(r.samples, cpu),
			medianOf(r.samples, func(s sample) float64 { return s.rate }), medianOf(r.samples, func(s sample) float64 { return s.p50 }),
			medianOf(r.samples, func(s sample) float64 { return s.p99 }), medianOf(r.samples, cpu)/bare)
	}
	return text.String()
}
