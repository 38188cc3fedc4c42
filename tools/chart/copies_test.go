package chart

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// deploy/kubernetes/broker.yaml is what "helm template" prints with the values beside it.
func TestKubernetesManifestsAreOfTheChart(t *testing.T) {
	manifests, _, err := render("broker", "tokenbroker", parse(t, string(read(t, kubernetesDir+"/values.yaml"))))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	out.WriteString("# Made of the chart in deploy/helm with values.yaml: change these, and write this file anew\n" +
		"# with \"go -C tools/chart test -update\". README.md says what must exist before it.\n")
	for i, manifest := range manifests {
		if i > 0 {
			out.WriteString("---\n")
		}
		fmt.Fprintf(&out, "# Source: %s\n%s\n", manifest.Name, strings.TrimSpace(manifest.Content))
	}
	compare(t, kubernetesDir+"/broker.yaml", out.Bytes())
}

// The caller's example fits the broker beside it: the address, the audience of its token,
// and its service account.
func TestKubernetesCallerFitsTheBroker(t *testing.T) {
	var account *corev1.ServiceAccount
	var deployment *appsv1.Deployment
	for document := range strings.SplitSeq(string(read(t, kubernetesDir+"/caller.yaml")), "\n---\n") {
		object, err := decode(document)
		if err != nil {
			t.Fatal(err)
		}
		switch object := object.(type) {
		case *corev1.ServiceAccount:
			account = object
		case *appsv1.Deployment:
			deployment = object
		}
	}
	broker := &release{}
	for document := range strings.SplitSeq(string(read(t, kubernetesDir+"/broker.yaml")), "\n---\n") {
		object, err := decode(document)
		if err != nil {
			t.Fatal(err)
		}
		broker.objects = append(broker.objects, object)
	}
	service := the[*corev1.Service](broker)
	env := map[string]string{}
	for _, variable := range deployment.Spec.Template.Spec.Containers[0].Env {
		env[variable.Name] = variable.Value
	}
	if want := fmt.Sprintf("%s.%s.svc:%d", service.Name, service.Namespace, service.Spec.Ports[0].Port); env["TOKENBROKER_ADDR"] != want {
		t.Errorf("the caller calls %s, the broker is at %s", env["TOKENBROKER_ADDR"], want)
	}
	text := the[*corev1.ConfigMap](broker).Data["broker.yaml"]
	subject := fmt.Sprintf("system:serviceaccount:%s:%s", account.Namespace, account.Name)
	if deployment.Spec.Template.Spec.ServiceAccountName != account.Name || !strings.Contains(text, "subject: "+subject+"\n") {
		t.Errorf("the broker does not know %s:\n%s", subject, text)
	}
	token := deployment.Spec.Template.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken
	if token.Audience != "tokenbroker" {
		t.Errorf("the caller's token is for %s", token.Audience)
	}
}
