package deploy

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.yaml.in/yaml/v4"

	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	kubernetesBroker = "../../../deploy/kubernetes/broker.yaml"
	kubernetesCaller = "../../../deploy/kubernetes/caller.yaml"
)

// manifest is what the test looks at of an object of Kubernetes.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string
	Spec     struct {
		Template struct {
			Spec struct {
				ServiceAccountName string `yaml:"serviceAccountName"`
				AutomountToken     bool   `yaml:"automountServiceAccountToken"`
				Containers         []struct {
					Env          []struct{ Name, Value string }
					VolumeMounts []struct {
						Name      string
						MountPath string `yaml:"mountPath"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct {
					Name      string
					Projected struct {
						Sources []struct {
							ServiceAccountToken struct{ Audience, Path string } `yaml:"serviceAccountToken"`
						}
					}
				}
			}
		}
	}
}

func manifests(t *testing.T, file string) map[string]manifest {
	t.Helper()
	found := map[string]manifest{}
	for document := range strings.SplitSeq(readText(t, file), "\n---\n") {
		var m manifest
		if err := yaml.Load([]byte(document), &m); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		found[m.Kind] = m
	}
	return found
}

// cluster issues tokens as the API server of Kubernetes does.
type cluster struct {
	issuer string

	mu  sync.Mutex
	key *rsa.PrivateKey
	kid string
}

func newCluster(issuer string) *cluster {
	c := &cluster{issuer: issuer}
	c.rotate("cluster-1")
	return c
}

// rotate replaces the key.
func (c *cluster) rotate(kid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key, c.kid = harness.Must(rsa.GenerateKey(rand.Reader, 2048)), kid
}

// keys are what "kubectl get --raw /openid/v1/jwks" says.
func (c *cluster) keys() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	encode := base64.RawURLEncoding.EncodeToString
	exponent := big.NewInt(int64(c.key.E)).Bytes()
	return fmt.Sprintf(`{"keys":[{"use":"sig","kty":"RSA","kid":%q,"alg":"RS256","n":%q,"e":%q}]}`, c.kid, encode(c.key.N.Bytes()), encode(exponent))
}

// project is the token of a pod, in the form of a bound service account token.
func (c *cluster) project(t *testing.T, namespace, account, audience string) string {
	t.Helper()
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"aud": []string{audience}, "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nbf": now.Unix(),
		"iss": c.issuer, "jti": "0e2d8a4c-8b0e-4a1c-9f6e-3c1d6f2f9d11", "sub": "system:serviceaccount:" + namespace + ":" + account,
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"node":           map[string]string{"name": "node-1", "uid": "7b0f2c64-6f7a-4f59-9f2d-7d0a6f0b7c53"},
			"pod":            map[string]string{"name": account + "-5d9c7b", "uid": "f3c0b3f2-0b8d-4d2e-8f55-2f1c8f7e9a10"},
			"serviceaccount": map[string]string{"name": account, "uid": "9a5d4f0e-2c1b-4a7e-b6c3-5f0d8e7a1b22"},
		},
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(token.Header, "typ")
	token.Header["kid"] = c.kid
	signed, err := token.SignedString(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// serve serves the keys as the API server does: over TLS, to one token, which is
// replaced by swap.
func (c *cluster) serve(t *testing.T, ca *devca.Authority, token string) (url string, swap func(token string)) {
	t.Helper()
	var accepted atomic.Value
	accepted.Store("Bearer " + token)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/openid/v1/jwks":
			w.WriteHeader(http.StatusNotFound)
		case r.Header.Get("Authorization") != accepted.Load():
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = io.WriteString(w, c.keys())
		}
	}))
	pair := harness.Must(ca.Issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, func(token string) { accepted.Store("Bearer " + token) }
}

// What deploy/kubernetes describes, as plain processes: the broker's configuration
// as it stands there, but for where things are, and a caller with the token and the
// environment that its pod would have.
func TestKubernetesExampleWorks(t *testing.T) {
	t.Parallel()
	caller := manifests(t, kubernetesCaller)
	pod := caller["Deployment"].Spec.Template.Spec
	namespace := caller["Deployment"].Metadata.Namespace
	deployed := manifests(t, kubernetesBroker)
	config := deployed["ConfigMap"].Data["broker.yaml"]
	if res := harness.Run(t, "check-config", harness.WriteFile(t, "broker.yaml", config)); res.Code != 0 {
		t.Fatalf("check-config: %v", res)
	}

	kube := newCluster("https://kubernetes.default.svc.cluster.local")
	idp := harness.SimpleIdP(t, time.Hour)
	dir := t.TempDir()
	ca := harness.Must(devca.New("ca"))
	harness.Must(ca.Write(dir, "ca"))
	pair := harness.Must(ca.Issue(&x509.Certificate{DNSNames: []string{"broker.tokenbroker.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}))
	if _, _, err := pair.Write(dir, "tls"); err != nil {
		t.Fatal(err)
	}
	own := deployed["Deployment"].Spec.Template.Spec
	if !own.AutomountToken || own.ServiceAccountName != deployed["ServiceAccount"].Metadata.Name {
		t.Errorf("the broker's pod has no token of its service account: %+v", own)
	}
	podToken := func() string {
		return kube.project(t, deployed["ServiceAccount"].Metadata.Namespace, own.ServiceAccountName, "https://kubernetes.default.svc.cluster.local")
	}
	token := podToken()
	apiServer, swap := kube.serve(t, ca, token)
	for name, text := range map[string]string{"pod-token": token, "orders-api": idp.Client.Secrets[0].Reveal()} {
		testkit.WriteFile(t, filepath.Join(dir, name), text)
	}
	b := &harness.Broker{Grpc: harness.FreeAddress(t), Ops: harness.FreeAddress(t)}
	b.File = harness.WriteFile(t, "broker.yaml", strings.NewReplacer(
		" :8443", " "+b.Grpc, " :9090", " "+b.Ops, "/run/tls", dir, "/run/secrets/oauth-clients", dir, "/run/tokenbroker", dir,
		"preset: kubernetes", fmt.Sprintf("preset: kubernetes\n  jwks_url: %s/openid/v1/jwks\n  jwks_token_file: %s/pod-token\n  tls: {ca: %s/ca.crt}", apiServer, dir, dir),
		"https://login.example.com", idp.Issuer(), "https://orders.example.com", idp.Client.Audiences[0],
	).Replace(config))
	b.Launch(t, "broker")
	b.Await(t)
	// This is the probe of the chart's containers whose ops listener is on loopback.
	if res := harness.Run(t, "healthcheck", "--addr", "unix://"+filepath.Join(dir, "broker.sock")); res.Code != 0 {
		t.Errorf("healthcheck: %v", res)
	}

	projected := pod.Volumes[0].Projected.Sources[0].ServiceAccountToken
	mount := pod.Containers[0].VolumeMounts[0].MountPath
	as := func(token string) harness.Command {
		t.Helper()
		testkit.WriteFile(t, filepath.Join(dir, projected.Path), token)
		var env []string
		for _, variable := range pod.Containers[0].Env {
			value := strings.NewReplacer("broker.tokenbroker.svc:8443", b.Grpc, mount, dir).Replace(variable.Value)
			env = append(env, variable.Name+"="+value)
		}
		return harness.Command{Name: "broker", Env: append(env, "TOKENBROKER_SERVER_NAME=broker.tokenbroker.svc")}
	}
	res := as(kube.project(t, namespace, pod.ServiceAccountName, projected.Audience)).Run(t, "get", "orders-api", "--json")
	var got harness.Given
	if err := json.Unmarshal([]byte(res.Stdout), &got); res.Code != 0 || err != nil || !slices.Equal(got.Scopes, []string{"read"}) {
		t.Fatalf("get: %v", res)
	}
	for name, token := range map[string]string{
		"another service account": kube.project(t, namespace, "other", projected.Audience),
		"another namespace":       kube.project(t, "other", pod.ServiceAccountName, projected.Audience),
		"another audience":        kube.project(t, namespace, pod.ServiceAccountName, "https://kubernetes.default.svc"),
		"another cluster":         newCluster(kube.issuer).project(t, namespace, pod.ServiceAccountName, projected.Audience),
	} {
		if res := as(token).Run(t, "get", "orders-api", "--scope", "read"); res.Code == 0 || !strings.Contains(res.Stderr, "Unauthenticated") {
			t.Errorf("%s: %v", name, res)
		}
	}

	// Kubernetes replaces the token of the broker's pod, and then the cluster's key.
	next := podToken()
	swap(next)
	testkit.WriteFile(t, filepath.Join(dir, "pod-token"), next)
	kube.rotate("cluster-2")
	rotated := as(kube.project(t, namespace, pod.ServiceAccountName, projected.Audience))
	testkit.Eventually(t, "a token of the new key is accepted", func() bool { return rotated.Run(t, "get", "orders-api").Code == 0 })
	if log := b.Process.Output.String(); strings.Contains(log, token) || strings.Contains(log, next) {
		t.Error("the token of the broker's pod was logged")
	}
}
