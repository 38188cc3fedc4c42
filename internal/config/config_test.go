package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/gatewayconf"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

func ref(t *testing.T, text string) secret.Ref {
	t.Helper()
	r, err := secret.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// secretAt is the secret of a client, by reference.
func secretAt(t *testing.T, text string) config.ClientSecret {
	t.Helper()
	return config.ClientSecret{Ref: ref(t, text)}
}

// diff compares configurations by what they say.
func diff(want, got *config.Config) string {
	return cmp.Diff(want, got, cmp.Comparer(func(a, b secret.Ref) bool { return a == b }), cmpopts.IgnoreFields(config.Config{}, "Digest"), cmpopts.IgnoreUnexported(config.Config{}))
}

func load(t *testing.T, name string) *config.Config {
	t.Helper()
	config, err := config.Load(filepath.Join("testdata", "config", name))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// defaults is a configuration in which only clients and issuers are given.
func defaults() *config.Config {
	return &config.Config{
		Listen: config.Listen{
			GRPC: config.Listener{Address: "127.0.0.1:8443"},
			Ops:  config.Listener{Address: "127.0.0.1:9090"},
		},
		Store: config.Store{Memory: &config.MemoryStore{}},
		Server: config.Server{
			Deadline:       30 * time.Second,
			Reflection:     true,
			DrainTimeout:   25 * time.Second,
			StatusPage:     "loopback",
			SlowCall:       time.Second,
			CallerAudience: "tokenbroker",
		},
		Limits: config.Limits{
			PerSecond: 5000, Concurrent: 2000, Watches: 2000, InFlight: 10_000, Connections: 10_000, Streams: 250,
			ConnectionAge: 30 * time.Minute, HandshakeTimeout: 10 * time.Second, TokenKiB: 16, MessageKiB: 64, HeaderKiB: 16,
		},
		Gateways:     gatewayconf.Gateways{HeaderPrefix: "X-Auth-", Realm: "api", Needs: "query"},
		Log:          config.Log{Level: "info", Format: "json"},
		Verification: config.Verification{CacheMiB: 64, MaxValidity: 5 * time.Minute},
	}
}

func TestAbsentKeysHaveTheirDefaults(t *testing.T) {
	warnings := []yamlconf.Problem{{File: filepath.Join("testdata", "config", "minimal-client.yaml"), Line: 1, Message: "callers: no caller is configured, so every request would be refused: add a caller"}}
	want := defaults()
	want.Warnings = warnings
	want.Clients = map[string]config.Client{"orders-api": {
		Issuer:          "https://login.example.com",
		ClientID:        "abc",
		Secret:          secretAt(t, "env:ORDERS_SECRET"),
		Auth:            "client_secret_basic",
		GrantType:       "client_credentials",
		DefaultLifetime: 5 * time.Minute,
	}}
	if d := diff(want, load(t, "minimal-client.yaml")); d != "" {
		t.Errorf("minimal-client.yaml (-want +got):\n%s", d)
	}
	want = defaults()
	warnings[0].File = filepath.Join("testdata", "config", "minimal-issuer.yaml")
	want.Warnings = warnings
	want.Issuers = []config.Issuer{{
		Issuer:          "https://login.example.com",
		Audiences:       []string{"https://orders.example.com"},
		Algorithms:      []string{"RS256", "ES256", "EdDSA"},
		Types:           []string{"at+jwt"},
		ScopeClaim:      config.ClaimPath{"scope"},
		MissingSub:      "reject",
		IDTokenClaims:   []string{"at_hash", "c_hash"},
		Leeway:          30 * time.Second,
		MaxLifetime:     24 * time.Hour,
		RefreshInterval: 5 * time.Minute,
		MaxStale:        time.Hour,
	}}
	if d := diff(want, load(t, "minimal-issuer.yaml")); d != "" {
		t.Errorf("minimal-issuer.yaml (-want +got):\n%s", d)
	}
}

func TestEachKeyIsRead(t *testing.T) {
	offline := usual("https://offline.example.com", "", "/etc/tokenbroker/jwks.json")
	offline.ScopeClaim = config.ClaimPath{"realm_access", "roles"}
	const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount/"
	inCluster := usual("https://kubernetes.default.svc.cluster.local", "https://kubernetes.default.svc/openid/v1/jwks", "")
	inCluster.Preset, inCluster.Audiences, inCluster.Types, inCluster.AllowPrivate = "kubernetes", []string{"tokenbroker"}, []string{"JWT"}, true
	inCluster.JWKSTokenFile, inCluster.TLS = serviceAccount+"token", &config.IssuerTLS{CA: serviceAccount + "ca.crt"}
	otherCluster := usual("https://oidc.example.com/id/EXAMPLE", "https://10.0.0.1/openid/v1/jwks", "")
	otherCluster.Preset, otherCluster.Audiences, otherCluster.AllowPrivate = "kubernetes", []string{"tokenbroker"}, true
	otherCluster.JWKSTokenFile, otherCluster.TLS = "/run/other-cluster/token", &config.IssuerTLS{CA: "/run/other-cluster/ca.crt"}
	want := &config.Config{
		Listen: config.Listen{
			GRPC:     config.Listener{Address: "[::1]:8443", Caller: "sidecar"},
			Unix:     &config.Unix{Path: "/run/tokenbroker/broker.sock", Mode: "0600", Caller: "sidecar"},
			HTTP:     config.HTTPListener{Listener: config.Listener{Address: "127.0.0.1:8444", Plaintext: true, Caller: "sidecar"}, URL: "https://broker.example.com:8444"},
			HTTPUnix: &config.HTTPUnix{Unix: config.Unix{Path: "/run/tokenbroker/http.sock", Mode: "0666", Caller: "sidecar"}},
			Ops:      config.Listener{Address: "[::1]:9091", Plaintext: true},
			TLS:      &config.TLS{Cert: "tls.crt", Key: "tls.key", ClientCA: "ca.crt", MinVersion: "1.2"},
		},
		Store: config.Store{Memory: &config.MemoryStore{}},
		Server: config.Server{
			Deadline:       time.Minute,
			DrainDelay:     5 * time.Second,
			DrainTimeout:   90 * time.Second,
			Pprof:          true,
			StatusPage:     "always",
			SlowCall:       250 * time.Millisecond,
			CallerAudience: "urn:broker",
		},
		Limits: config.Limits{
			PerSecond: 0, Burst: 7, Concurrent: 0, Watches: 0, InFlight: 100, Connections: 200, Streams: 50,
			ConnectionAge: time.Hour, HandshakeTimeout: 5 * time.Second, TokenKiB: 12, MessageKiB: 32, HeaderKiB: 8,
		},
		Gateways: gatewayconf.Gateways{
			HeaderPrefix: "X-User-", Realm: "shop", Needs: "headers",
			ExtAuthz: &gatewayconf.ExtAuthz{Undecided: "denial", Claims: []string{"tenant"}, Rules: []gatewayconf.GatewayRule{
				{Host: "*.example.com", Path: "/orders/", Audiences: []string{"https://orders.example.com"}, Scopes: []string{"read"}, Issuer: "https://login.example.com"},
				{Path: "/"},
			}},
		},
		Log:     config.Log{Level: "debug", Format: "text"},
		Audit:   &config.Audit{File: "/var/log/tokenbroker/audit.jsonl", Tokens: "every", Verifications: "all", WhenFull: "refuse"},
		Tracing: &config.Tracing{Endpoint: "https://collector.example.com:4317", Sample: new(0.5), FollowCallers: new(true), CA: "/etc/tokenbroker/ca.crt"},
		Clients: map[string]config.Client{
			"orders-api": {
				Issuer:          "https://login.example.com",
				ClientID:        "abc",
				Secret:          secretAt(t, "file:/run/secrets/orders"),
				Auth:            "client_secret_post",
				GrantType:       "account_credentials",
				Audience:        "https://orders.example.com",
				Resources:       []string{"https://a.example.com", "https://b.example.com"},
				Scopes:          []string{"read", "write"},
				Params:          map[string]string{"prompt": "none", "acr.values": "1"},
				Extras:          []string{"instance_url"},
				DefaultLifetime: 10 * time.Minute,
			},
			"legacy.v2": {
				TokenURL:        "http://login.internal/token",
				ClientID:        "def",
				Secret:          secretAt(t, "env:LEGACY_SECRET"),
				Auth:            "client_secret_basic",
				GrantType:       "client_credentials",
				RawBasic:        true,
				DefaultLifetime: 5 * time.Minute,
				AllowHTTP:       true,
				BearerTypes:     []string{"BearerToken"},
				AllowPrivate:    true,
			},
			"signing": {
				Issuer:    "https://login.example.com",
				ClientID:  "ghi",
				Secret:    secretAt(t, "file:/run/secrets/signing.pem"),
				Auth:      "private_key_jwt",
				GrantType: "client_credentials",
				Assertion: config.Assertion{
					Audience: "token_endpoint", Algorithm: "PS256", Kid: "key-1", Typ: "JWT", Certificate: "/etc/tokenbroker/signing.crt",
				},
				DefaultLifetime: 5 * time.Minute,
			},
			"bearer": {
				TokenURL:        "https://login.example.com/token",
				ClientID:        "jkl",
				Secret:          secretAt(t, "file:/run/secrets/bearer.json"),
				Auth:            "none",
				GrantType:       "urn:ietf:params:oauth:grant-type:jwt-bearer",
				Assertion:       config.Assertion{Audience: "https://login.example.com", Subject: "user@example.com"},
				DefaultLifetime: 5 * time.Minute,
			},
			"federated": {
				Issuer:          "https://login.example.com",
				ClientID:        "mno",
				Auth:            "federated_jwt",
				GrantType:       "client_credentials",
				Assertion:       config.Assertion{File: "/var/run/secrets/tokens/idp"},
				DefaultLifetime: 5 * time.Minute,
			},
			"mutual": {
				Issuer:          "https://login.example.com",
				ClientID:        "pqr",
				Auth:            "tls_client_auth",
				GrantType:       "client_credentials",
				TLS:             &config.ClientTLS{CA: "/etc/tokenbroker/idp-ca.crt", Cert: "/etc/tokenbroker/client.crt", Key: "/etc/tokenbroker/client.key"},
				DefaultLifetime: 5 * time.Minute,
			},
			"known": {
				Preset:          "entra",
				Issuer:          "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0",
				ClientID:        "stu",
				Secret:          secretAt(t, "file:/run/secrets/known"),
				Auth:            "client_secret_post",
				GrantType:       "client_credentials",
				Assertion:       config.Assertion{Audience: "token_endpoint", Algorithm: "PS256", Typ: "JWT"},
				DefaultLifetime: 5 * time.Minute,
			},
			"vaulted": {
				Issuer:   "https://login.example.com",
				ClientID: "yz",
				Secret: config.ClientSecret{Vault: &config.VaultSource{
					Address: "https://vault.example.com:8200", Namespace: "team", CA: "/etc/tokenbroker/vault-ca.crt", Mount: "kv", Path: "apps/orders", Field: "client_secret",
					Auth: "approle", AuthMount: "ci/approle", RoleID: ref(t, "env:ROLE_ID"), SecretID: ref(t, "file:/run/secrets/secret-id"), Every: time.Minute, Timeout: 5 * time.Second,
				}},
				Auth:            "client_secret_basic",
				GrantType:       "client_credentials",
				DefaultLifetime: 5 * time.Minute,
			},
			"printed": {
				Issuer:   "https://login.example.com",
				ClientID: "vwx",
				Secret: config.ClientSecret{Exec: &config.ExecSource{
					Command: []string{"/usr/local/bin/print-secret", "orders"}, Every: time.Minute, Timeout: 30 * time.Second, Environment: []string{"PATH", "HOME"},
				}},
				Auth:            "client_secret_basic",
				GrantType:       "client_credentials",
				DefaultLifetime: 5 * time.Minute,
			},
		},
		Issuers: []config.Issuer{
			{
				Issuer:          "https://login.example.com",
				JWKSURL:         "https://login.example.com/keys",
				Audiences:       []string{"https://orders.example.com", "orders"},
				Algorithms:      []string{"PS256", "ES384"},
				Types:           []string{"at+jwt", "JWT"},
				ScopeClaim:      config.ClaimPath{"scp"},
				MissingSub:      "reject",
				IDTokenClaims:   []string{"at_hash", "c_hash"},
				MaxLifetime:     time.Hour,
				MaxAge:          30 * time.Minute,
				RefreshInterval: 15 * time.Minute,
				MaxStale:        24 * time.Hour,
				TLS:             &config.IssuerTLS{CA: "/etc/tokenbroker/issuer-ca.crt"},
				Introspection: &config.Introspection{
					Client: "orders-api", Endpoint: "https://login.example.com/introspect", Cache: 0, DefaultLifetime: time.Minute,
				},
			},
			{
				Issuer:          "http://login.internal",
				Audiences:       []string{"a"},
				Algorithms:      []string{"RS256", "ES256", "EdDSA"},
				Types:           []string{"at+jwt"},
				ScopeClaim:      config.ClaimPath{"scope"},
				MissingSub:      "reject",
				IDTokenClaims:   []string{"at_hash", "c_hash"},
				Leeway:          30 * time.Second,
				MaxLifetime:     24 * time.Hour,
				RefreshInterval: 5 * time.Minute,
				MaxStale:        time.Hour,
				AllowHTTP:       true,
				AllowPrivate:    true,
			},
			usual("https://login.example.org/t-1/v2.0", "https://login.example.org/t-1/keys", ""),
			usual("https://login.example.org/t-2/v2.0", "https://login.example.org/t-2/keys", ""),
			offline,
			inCluster,
			otherCluster,
		},
		Verification: config.Verification{MaxValidity: time.Minute},
		Callers: []config.Caller{
			{Name: "checkout", SPIFFEID: "spiffe://example.com/ns/shop/*", Roles: []string{"orders"}},
			{Name: "batch", URISAN: "urn:example:batch", Roles: []string{"orders"}},
			{Name: "edge", DNSSAN: "gateway.example.com", Roles: []string{"gateway", "orders"}},
			{Name: "pods", Issuer: "https://login.example.org/t-1/v2.0", Subject: "system:serviceaccount:shop:*", Roles: []string{"orders"}},
			{
				Name: "job", Issuer: "https://login.example.org/t-1/v2.0", Subject: "repo:octo/*", Roles: []string{"orders"},
				Claims: []config.Claim{{Path: []string{"kubernetes.io", "namespace"}, Value: "shop"}},
			},
			{Name: "local", UID: new(1000), Roles: []string{"operator"}, Limits: &config.CallerLimits{
				PerSecond: new(10), Burst: new(20), Concurrent: new(0), Watches: new(3),
			}},
			{Name: "sidecar", Roles: []string{"orders"}},
		},
		Roles: map[string]config.Role{
			"orders": {Get: []config.GetGrant{{
				Client: "orders-api", Audiences: []string{"*"}, Resources: []string{"https://a.example.com"}, Scopes: []string{"read"},
			}}},
			"gateway": {Verify: []config.VerifyGrant{
				{Issuer: "https://login.example.org/t-1/v2.0", Audiences: []string{"a"}},
				{Issuer: "https://login.example.org/t-2/v2.0", Audiences: []string{"a"}},
			}},
			"operator": {Admin: []config.AdminGrant{{Actions: []string{"purge_tokens"}, Clients: []string{"legacy.v2"}}}},
		},
	}
	if d := diff(want, load(t, "everything.yaml")); d != "" {
		t.Errorf("everything.yaml (-want +got):\n%s", d)
	}
}

// usual is an issuer with everything else as by default.
func usual(issuer, jwksURL, jwksFile string) config.Issuer {
	return config.Issuer{
		Issuer:          issuer,
		JWKSURL:         jwksURL,
		JWKSFile:        jwksFile,
		Audiences:       []string{"a"},
		Algorithms:      []string{"RS256", "ES256", "EdDSA"},
		Types:           []string{"at+jwt"},
		ScopeClaim:      config.ClaimPath{"scope"},
		MissingSub:      "reject",
		IDTokenClaims:   []string{"at_hash", "c_hash"},
		Leeway:          30 * time.Second,
		MaxLifetime:     24 * time.Hour,
		RefreshInterval: 5 * time.Minute,
		MaxStale:        time.Hour,
	}
}

func TestSpellingsOfYAML(t *testing.T) {
	cfg := load(t, "spellings.yaml")
	if cfg.Listen.Ops != (config.Listener{}) {
		t.Errorf("ops: off is %+v", cfg.Listen.Ops)
	}
	c := cfg.Clients["123"]
	if c.ClientID != "0123" || c.Audience != "2026-01-01" || cmp.Diff(c.Scopes, []string{"read", "true"}) != "" {
		t.Errorf("client 123 is %+v", c)
	}
	if got := cfg.Clients["a.b"].ClientID; got != "x y" {
		t.Errorf("client_id of a.b is %q", got)
	}
	if got := load(t, "windows.yaml").Clients["orders-api"].ClientID; got != "abc" {
		t.Errorf("with byte order mark and CRLF, client_id is %q", got)
	}
}

func TestExampleIsValid(t *testing.T) {
	if _, err := config.Load("../../broker.example.yaml"); err != nil {
		t.Error(err)
	}
}

func TestUnreadableFileIsAConfigError(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "absent.yaml"): "the configuration cannot be read: no such file or directory",
		dir:                               "the configuration cannot be read: is a directory",
	} {
		_, err := config.Load(path)
		if _, ok := errors.AsType[*yamlconf.Error](err); !ok || err.Error() != path+": "+want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFileSizeIsBounded(t *testing.T) {
	_, err := config.Load("/dev/zero")
	if err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("the endless file gave %v", err)
	}
}

// A literal where a reference belongs is a mistake that must not spread the
// secret: messages go to logs and to build output.
func TestSecretsDoNotLeakIntoMessages(t *testing.T) {
	const canary = "hunter2"
	keys := []string{
		"secret: hunter2", "secret: 'hunter2'", `secret: "hunter2`, "secret: [hunter2]", "secret: {hunter2: x}", "secret: {value: hunter2}",
		"secret: *hunter2", "secret: &hunter2", "secret: !hunter2 x", "secret: !!binary hunter2", "secret: @hunter2", "secret: %hunter2", "secret: `hunter2",
		`secret: "\qhunter2"`, "secret: hunter2: x", "secret: vault:hunter2", "secret: |\n      hunter2", "secret:\n      hunter2", "secret:hunter2", "secret:hunter2: x",
		"{secret:hunter2}", "? secret:hunter2", "client_secret: hunter2", "secrets: hunter2", "auth: hunter2", "audience: [hunter2]", "default_lifetime: hunter2",
		"raw_basic: hunter2", "params: {client_secret: hunter2}", "params: {key:hunter2}", "params: {key: [hunter2]}", "extras: hunter2",
		"scopes: ['hunter2 x']", "scopes: [hunter2, hunter2]", "issuer: https://me:hunter2@login.example.com", "token_url: hunter2", "token_url: http://example.com/?key=hunter2",
		"auth: &hunter2 [*hunter2]", "<<: *hunter2", "<<: {secret: hunter2}", "secret: \x01hunter2", "secret: \xffhunter2", "\tsecret: hunter2",
	}
	for _, key := range keys {
		file := "clients:\n  orders-api:\n    client_id: abc\n    " + key + "\n"
		_, err := config.Parse("broker.yaml", []byte(file))
		if err == nil {
			t.Errorf("accepted:\n%s", file)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("the message repeats the secret of\n%s\n%v", file, err)
		}
	}
	if len(keys) < 40 {
		t.Errorf("only %d ways to misplace a secret were tried", len(keys))
	}
}

// manyClients is a file of n clients.
func manyClients(n int) []byte {
	var b strings.Builder
	b.WriteString("clients:\n")
	for i := range n {
		fmt.Fprintf(&b, "  client-%d:\n    issuer: https://login-%d.example.com\n    client_id: id-%d\n    secret: file:/run/secrets/client-%d\n"+
			"    auth: client_secret_basic\n    audience: https://orders.example.com\n    scopes: [read, write]\n", i, i%20, i, i)
	}
	return []byte(b.String())
}

func TestTenThousandClients(t *testing.T) {
	const n = 10_000
	cfg, err := config.Parse("broker.yaml", manyClients(n))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Clients) != n {
		t.Fatalf("%d clients were read", len(cfg.Clients))
	}
	for i := range n {
		want := config.Client{
			Issuer:          fmt.Sprintf("https://login-%d.example.com", i%20),
			ClientID:        fmt.Sprintf("id-%d", i),
			Secret:          secretAt(t, fmt.Sprintf("file:/run/secrets/client-%d", i)),
			Auth:            "client_secret_basic",
			GrantType:       "client_credentials",
			Audience:        "https://orders.example.com",
			Scopes:          []string{"read", "write"},
			DefaultLifetime: 5 * time.Minute,
		}
		got := cfg.Clients[fmt.Sprintf("client-%d", i)]
		if i%500 == 0 || got.ClientID != want.ClientID || got.Secret.Ref != want.Secret.Ref {
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b secret.Ref) bool { return a == b })); d != "" {
				t.Fatalf("client-%d (-want +got):\n%s", i, d)
			}
		}
	}
}

func TestTenThousandBadClientsAreNamed(t *testing.T) {
	const n = 10_000
	file := strings.ReplaceAll(string(manyClients(n)), "secret: file:", "secret: ")
	_, err := config.Parse("broker.yaml", []byte(file))
	bad, ok := errors.AsType[*yamlconf.Error](err)
	if !ok || len(bad.Problems) != n {
		t.Fatalf("%d bad clients gave %.200v", n, err)
	}
	for i, p := range bad.Problems {
		if p.Line != 5+7*i {
			t.Fatalf("problem %d is in line %d", i, p.Line)
		}
	}
}

// FuzzParseConfig: whatever the file, it is either read or refused with
// sentences of our own that name a line.
func FuzzParseConfig(f *testing.F) {
	good, err := filepath.Glob("testdata/config/*.yaml")
	if err != nil || len(good) < 5 {
		f.Fatalf("good configurations: %q, %v", good, err)
	}
	for _, path := range append(good, "../../broker.example.yaml") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, c := range badConfigs() {
		if len(c.file) < 4096 {
			f.Add([]byte(c.file))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("x", data)
		if err == nil {
			if len(cfg.Clients)+len(cfg.Issuers) == 0 || (cfg.Store.Memory == nil && cfg.Store.Redis == nil && cfg.Store.Bolt == "") || cfg.Listen.GRPC.Address == "" {
				t.Errorf("accepted: %+v", cfg)
			}
			return
		}
		bad, ok := errors.AsType[*yamlconf.Error](err)
		if cfg != nil || !ok || len(bad.Problems) == 0 {
			t.Fatalf("refused with %v and %T", cfg, err)
		}
		line := 1
		for _, p := range bad.Problems {
			if p.Line < line || p.File != "x" || p.Message == "" {
				t.Errorf("after line %d: %+v", line, p)
			}
			line = p.Line
			if word := alien(p.Message); word != "" && !strings.Contains(string(data), word) {
				t.Errorf("the message holds %q: %s", word, p.Message)
			}
		}
	})
}

// alien returns what does not belong in a message: the words of the parser and
// the names of Go types.
func alien(message string) string {
	for _, word := range []string{"\n", "go-yaml", "yaml:", "construct", "config.Config", "config.Client", "time.Duration", "reflect."} {
		if strings.Contains(message, word) {
			return word
		}
	}
	return ""
}

func BenchmarkParseConfig(b *testing.B) {
	data := manyClients(10_000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := config.Parse("broker.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStatusPageIsOnLoopbackUnlessConfigured(t *testing.T) {
	const beyond, loopback = "listen: {ops: {address: ':9090', plaintext: true}}\n", "listen: {ops: 127.0.0.1:9090}\n"
	for text, want := range map[string]bool{
		"": true, loopback: true, beyond: false,
		"listen: {ops: '[::1]:9090'}\n":                                 true,
		"listen: {ops: localhost:9090}\n":                               true,
		beyond + "server: {status_page: always}\n":                      true,
		beyond + "server: {status_page: loopback}\n":                    false,
		beyond + "server: {status_page: off}\n":                         false,
		loopback + "server: {status_page: off}\n":                       false,
		"listen: {ops: {address: '192.0.2.1:9090', plaintext: true}}\n": false,
	} {
		cfg, err := config.Parse("broker.yaml", []byte(client()+text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got := cfg.ServesStatusPage(); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
