package chart

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The choices of the chart are combined in every way. Each combination is refused with
// a sentence, or its pods, ports, files and configuration fit together.
func TestCombinationsAreRefusedOrFitTogether(t *testing.T) {
	both := []any{false, true}
	choices := []struct {
		path   string
		values []any
	}{
		{"tls.source", []any{"secret", "certManager", "spiffe", "none"}},
		{"store.kind", []any{"redis", "bolt", "memory"}},
		{"http.enabled", both},
		{"ops.plaintext", both},
		{"networkPolicy.enabled", both},
		{"grpc.plaintext", both},
	}
	given := parse(t, `
replicas: 1
store: {redis: {addresses: ["redis:6379"]}}
tls: {certManager: {issuer: {name: internal}}}
http: {plaintext: true}
networkPolicy:
  callers: [{namespaceSelector: {}}]
  prometheus: [{namespaceSelector: {}}]
kubernetes:
  callers: [{name: checkout, namespace: shop, serviceAccount: checkout, roles: [gateway]}]
config:
  roles: {gateway: {verify: [{issuer: "https://kubernetes.default.svc.cluster.local"}]}}
`)
	installed, refused := 0, 0
	var try func(i int, given values, name string)
	try = func(i int, given values, name string) {
		if i < len(choices) {
			for _, value := range choices[i].values {
				try(i+1, with(t, given, choices[i].path, value), fmt.Sprintf("%s%s=%v ", name, choices[i].path, value))
			}
			return
		}
		r, err := tryInstall(given)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), "configmap.yaml:1:4): \n\n") {
				t.Errorf("%s: %v", name, err)
			}
			return
		}
		installed++
		want := listeners(t, r)
		checkServices(t, r, want)
		checkProbes(t, r, want)
		checkIngress(t, r, want)
		checkFiles(t, r)
		for path, plain := range unencrypted(r) {
			if plain && !on(given, path) {
				t.Errorf("without %s", path)
			}
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
	try(0, given, "")
	if installed < 50 || refused < 50 {
		t.Errorf("%d combinations were installed, %d refused", installed, refused)
	}
}

// Names of objects and labels have limits, which the longest name of a release keeps.
func TestNamesAreShortEnough(t *testing.T) {
	given := parse(t, string(read(t, examplesDir+"/production.yaml")))
	for _, name := range []string{strings.Repeat("r", 53), "r"} {
		manifests, _, err := render(name, "identity", given)
		if err != nil {
			t.Fatal(err)
		}
		for _, manifest := range manifests {
			object, err := decode(manifest.Content)
			if err != nil {
				t.Fatal(err)
			}
			named, err := meta.Accessor(object)
			if err != nil {
				t.Fatal(err)
			}
			problems := validation.IsDNS1123Label(named.GetName())
			for key, value := range named.GetLabels() {
				problems = slices.Concat(problems, validation.IsQualifiedName(key), validation.IsValidLabelValue(value))
			}
			if len(problems) > 0 {
				t.Errorf("%T %s: %v", object, named.GetName(), problems)
			}
		}
	}
}

// Texts that look like numbers, or like other values, stay as they are on their way
// through YAML, and numbers do not become exponents.
func TestTextsStayTexts(t *testing.T) {
	c := install(t, parse(t, string(read(t, "testdata/options.yaml")))).config
	if got := c.Issuers[0].Audiences; !slices.Equal(got, []string{"on", "1e3"}) {
		t.Errorf("audiences %q", got)
	}
	if got := c.Clients["introspector"].ClientID; got != "007" {
		t.Errorf("client_id %q", got)
	}
	if got := c.Gateways.Realm; got != "null" {
		t.Errorf("realm %q", got)
	}
	c = install(t, parse(t, string(read(t, examplesDir+"/production.yaml")))).config
	if got := c.Limits.InFlight; got != 1_000_000 {
		t.Errorf("in_flight %d", got)
	}
}

// The user's own labels, annotations and places reach the pods.
func TestPodsHaveWhatValuesAdd(t *testing.T) {
	pod := install(t, parse(t, string(read(t, "testdata/options.yaml")))).pod()
	spec := pod.Spec
	container := spec.Containers[0]
	for what, ok := range map[string]bool{
		"podLabels":      pod.Labels["team"] == "identity",
		"podAnnotations": pod.Annotations["example.com/scan"] == "true",
		"nodeSelector":   spec.NodeSelector["kubernetes.io/os"] == "linux",
		"tolerations":    len(spec.Tolerations) == 1 && spec.Tolerations[0].Effect == corev1.TaintEffectNoSchedule,
		"pullSecrets":    len(spec.ImagePullSecrets) == 1 && spec.ImagePullSecrets[0].Name == "mirror",
		"image":          container.Image == "registry.example.com:5000/mirror/tokenbroker:0.1.0-rc.1",
		"pullPolicy":     container.ImagePullPolicy == corev1.PullAlways,
		"serviceAccount": spec.ServiceAccountName == "existing",
		"the token that preset: kubernetes reads": *spec.AutomountServiceAccountToken,
		"topologySpread": len(spec.TopologySpreadConstraints) == 1 && spec.TopologySpreadConstraints[0].WhenUnsatisfiable == corev1.DoNotSchedule,
	} {
		if !ok {
			t.Errorf("%s: %+v", what, pod)
		}
	}
	if image := install(t, parse(t, string(read(t, examplesDir+"/redis.yaml")))).container().Image; image != "ghcr.io/cezzis/tokenbroker:0.1.0" {
		t.Errorf("the image is not that of the appVersion: %s", image)
	}
	if image := install(t, parse(t, string(read(t, examplesDir+"/production.yaml")))).container().Image; !strings.Contains(image, "@sha256:") || strings.Count(image, ":") != 1 {
		t.Errorf("the image is not pinned: %s", image)
	}
}
