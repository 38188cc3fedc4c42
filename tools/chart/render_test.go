// Package chart tests the Helm chart in deploy/helm. It renders the chart with Helm's own
// library, as "helm template" does, and checks the objects with Kubernetes' own types and
// the configuration as "broker check-config" does. Helm and Kubernetes have so many
// dependencies that these tests are in a module of their own.
package chart

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/cezzis/tokenbroker/internal/config"
)

const (
	chartDir      = "../../deploy/helm/tokenbroker"
	examplesDir   = "../../deploy/helm/examples"
	kubernetesDir = "../../deploy/kubernetes"
)

var update = flag.Bool("update", false, "write the files that are made of others anew")

type values = map[string]any

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// parse returns the values in a text.
func parse(t *testing.T, text string) values {
	t.Helper()
	parsed := values{}
	if err := yaml.UnmarshalStrict([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// valueFiles returns the files with values that the chart is tested with: its examples,
// that of deploy/kubernetes, and those of the tests.
func valueFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{"kubernetes": filepath.Join(kubernetesDir, "values.yaml")}
	for _, dir := range []string{examplesDir, "testdata"} {
		found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: no files with values (%v)", dir, err)
		}
		for _, file := range found {
			files[strings.TrimSuffix(filepath.Base(file), ".yaml")] = file
		}
	}
	return files
}

// loaded returns the chart, which is read once.
var loaded = sync.OnceValues(func() (chart.Charter, error) { return loader.Load(chartDir) })

// render returns the manifests in the order and form of "helm template", and the notes.
// It fails as "helm install" does, the checks of the schema included.
func render(name, namespace string, given values) (manifests []releaseutil.Manifest, notes string, err error) {
	chart, err := loaded()
	if err != nil {
		return nil, "", err
	}
	options := common.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}
	top, err := util.ToRenderValues(chart, given, options, nil)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Render(chart, top)
	if err != nil {
		return nil, "", err
	}
	const notesFile = "tokenbroker/templates/NOTES.txt"
	notes = files[notesFile]
	delete(files, notesFile)
	_, manifests, err = releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	return manifests, notes, err
}

// release is the chart as it was rendered with some values.
type release struct {
	objects []runtime.Object
	// The configuration: as text, and as the broker reads it.
	text   string
	config *config.Config
	notes  string
}

// install renders the chart, decodes the objects and checks the configuration.
func install(t *testing.T, given values) *release {
	t.Helper()
	r, err := tryInstall(given)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryInstall(given values) (*release, error) {
	manifests, notes, err := render("tokenbroker", "identity", given)
	if err != nil {
		return nil, err
	}
	r := &release{notes: notes}
	for _, manifest := range manifests {
		object, err := decode(manifest.Content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", manifest.Name, err, manifest.Content)
		}
		r.objects = append(r.objects, object)
	}
	r.text = the[*corev1.ConfigMap](r).Data["broker.yaml"]
	r.config, err = config.Parse("broker.yaml", []byte(r.text))
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, r.text)
	}
	return r, nil
}

// decoder returns a decoder of the objects of Kubernetes, of cert-manager and of the
// Prometheus operator. Unknown and repeated fields are errors.
var decoder = sync.OnceValue(func() runtime.Decoder {
	known := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(known))
	utilruntime.Must(certmanager.AddToScheme(known))
	utilruntime.Must(monitoring.AddToScheme(known))
	return serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()
})

func decode(manifest string) (runtime.Object, error) {
	object, _, err := decoder().Decode([]byte(manifest), nil, nil)
	return object, err
}

// all returns the objects of a type.
func all[T runtime.Object](r *release) (found []T) {
	for _, object := range r.objects {
		if object, ok := object.(T); ok {
			found = append(found, object)
		}
	}
	return found
}

// the returns the one object of a type.
func the[T runtime.Object](r *release) T {
	found := all[T](r)
	if len(found) != 1 {
		panic(fmt.Sprintf("the release has %d objects of the type %T", len(found), *new(T)))
	}
	return found[0]
}

// pod returns the pods' template.
func (r *release) pod() *corev1.PodTemplateSpec {
	for _, object := range r.objects {
		switch object := object.(type) {
		case *appsv1.Deployment:
			return &object.Spec.Template
		case *appsv1.StatefulSet:
			return &object.Spec.Template
		}
	}
	panic("the release has no pods")
}

func (r *release) container() *corev1.Container { return &r.pod().Spec.Containers[0] }

// with returns values in which one is replaced: the keys of path are separated by dots.
func with(t *testing.T, given values, path string, value any) values {
	t.Helper()
	changed := maps.Clone(given)
	if changed == nil {
		changed = values{}
	}
	key, rest, nested := strings.Cut(path, ".")
	if !nested {
		changed[key] = value
		return changed
	}
	inner, _ := given[key].(values)
	changed[key] = with(t, inner, rest, value)
	return changed
}

// compare compares a file with its wanted content, or writes it if -update is given.
func compare(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got := read(t, path)
	if bytes.Equal(got, want) {
		return
	}
	lines := slices.Collect(strings.Lines(string(got)))
	for i, line := range slices.Collect(strings.Lines(string(want))) {
		if i >= len(lines) || lines[i] != line {
			t.Fatalf("%s differs from line %d on, which should be\n%s"+
				"write it anew with: go -C tools/chart test -update", path, i+1, line)
		}
	}
	t.Fatalf("%s is too long: write it anew with: go -C tools/chart test -update", path)
}

// claims returns the claims that a StatefulSet makes for its pods.
func (r *release) claims() []corev1.PersistentVolumeClaim {
	for _, set := range all[*appsv1.StatefulSet](r) {
		return set.Spec.VolumeClaimTemplates
	}
	return nil
}

// selector returns the selector of the Deployment or the StatefulSet.
func (r *release) selector() *metav1.LabelSelector {
	for _, set := range all[*appsv1.StatefulSet](r) {
		return set.Spec.Selector
	}
	return the[*appsv1.Deployment](r).Spec.Selector
}
