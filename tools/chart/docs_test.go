package chart

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/cezzis/tokenbroker/internal/policyreview"
)

const docsFile = "../../docs/kubernetes.md"

// blocks returns the blocks of a language in docs/kubernetes.md.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	var found []string
	for _, block := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(read(t, docsFile)), -1) {
		found = append(found, block[1])
	}
	return found
}

// The commands of the document create all that the pods of its values need.
func TestDocumentCreatesWhatPodsNeed(t *testing.T) {
	commands := strings.Join(blocks(t, "sh"), "\n")
	created := map[string]bool{}
	for _, command := range regexp.MustCompile(`create (secret) (?:generic|tls) (\S+)|create (configmap) (\S+)`).FindAllStringSubmatch(commands, -1) {
		created[command[1]+command[3]+" "+command[2]+command[4]] = true
	}
	r := install(t, parse(t, blocks(t, "yaml")[0]))
	needed := map[string]bool{}
	for _, volume := range r.pod().Spec.Volumes {
		if volume.Secret != nil {
			needed["secret "+volume.Secret.SecretName] = true
		}
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if source.Secret != nil {
				needed["secret "+source.Secret.Name] = true
			}
			if source.ConfigMap != nil {
				needed["configmap "+source.ConfigMap.Name] = true
			}
		}
	}
	if !maps.Equal(created, needed) {
		t.Errorf("the document creates %v, the pods need %v", slices.Sorted(maps.Keys(created)), slices.Sorted(maps.Keys(needed)))
	}
	for _, file := range []string{"ring.json", "password", "ca.crt", "orders-api"} {
		if !strings.Contains(commands, "--from-file="+file) {
			t.Errorf("no command makes the file %s", file)
		}
	}
}

func TestDocumentShowsAPodThatReachesTheBroker(t *testing.T) {
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict([]byte(blocks(t, "yaml")[1]), &pod); err != nil {
		t.Fatal(err)
	}
	manifests, _, err := render("tokenbroker", "tokenbroker", parse(t, blocks(t, "yaml")[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, manifest := range manifests {
		object, err := decode(manifest.Content)
		if err != nil {
			t.Fatal(err)
		}
		service, ok := object.(*corev1.Service)
		if !ok {
			continue
		}
		if want, got := fmt.Sprintf("%s.%s.svc:%d", service.Name, service.Namespace, service.Spec.Ports[0].Port), pod.Spec.Containers[0].Env[0].Value; got != want {
			t.Errorf("the pod calls %s, the broker is at %s", got, want)
		}
	}
	if token := pod.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken; token.Audience != "tokenbroker" {
		t.Errorf("the pod's token is for %s", token.Audience)
	}
}

// The operator's part fits the document's own values, and its command the operator's rights.
func TestDocumentShowsAnOperator(t *testing.T) {
	r := install(t, merge(parse(t, blocks(t, "yaml")[2]), parse(t, blocks(t, "yaml")[0])))
	if lines, ok := policyreview.Explain(r.config, "operator"); !ok || !strings.Contains(strings.Join(lines, "\n"), "list_clients") {
		t.Errorf("%v", lines)
	}
	user := *r.pod().Spec.SecurityContext.RunAsUser
	if !strings.Contains(r.text, fmt.Sprintf("uid: %d\n", user)) {
		t.Errorf("the operator is not the user %d of the container", user)
	}
	commands := strings.Join(blocks(t, "sh"), "\n")
	if socket := "--addr unix://" + r.config.Listen.Unix.Path; !strings.Contains(commands, socket) {
		t.Errorf("no command has %s", socket)
	}
}

// The message in the document is that of Helm.
func TestDocumentShowsTheMessageOfAMisspeltKey(t *testing.T) {
	given := with(t, parse(t, blocks(t, "yaml")[0]), "config.clients.orders-api.scope", "read")
	_, _, err := render("tokenbroker", "tokenbroker", given)
	message := "at '/config/clients/orders-api': additional properties 'scope' not allowed"
	if err == nil || !strings.Contains(err.Error(), message) || !strings.Contains(string(read(t, docsFile)), message) {
		t.Errorf("got %v", err)
	}
}
