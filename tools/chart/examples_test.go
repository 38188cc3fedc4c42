package chart

import (
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// forEachFile runs a test with the values of each file.
func forEachFile(t *testing.T, test func(t *testing.T, given values)) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(valueFiles(t))) {
		given := parse(t, string(read(t, valueFiles(t)[name])))
		t.Run(name, func(t *testing.T) { test(t, given) })
	}
}

func TestChartHasNoLint(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		linter := lint.RunAll(chartDir, given, "identity", lint.WithKubeVersion(&common.KubeVersion{Version: "v1.37.0", Major: "1", Minor: "37"}))
		for _, message := range linter.Messages {
			if message.Severity > support.InfoSev {
				t.Error(message)
			}
		}
	})
}

// The chart also has no lint without values, although it cannot be installed so.
func TestChartHasNoLint_defaults(t *testing.T) {
	for _, message := range lint.RunAll(chartDir, values{}, "identity").Messages {
		if message.Severity > support.InfoSev {
			t.Error(message)
		}
	}
}

func TestConfigurationIsAcceptedWithoutWarnings(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		r := install(t, given)
		for _, warning := range r.config.Warnings {
			if on(given, "grpc.plaintext") && strings.HasSuffix(warning.Message, "unless a mesh encrypts") {
				continue
			}
			t.Errorf("%v\n%s", warning, r.text)
		}
	})
}

func TestPodsAreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	forEachFile(t, func(t *testing.T, given values) {
		pod := install(t, given).pod()
		for _, result := range evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec) {
			if !result.Allowed {
				t.Errorf("%s: %s", result.ForbiddenReason, result.ForbiddenDetail)
			}
		}
		// The standard does not demand these.
		if len(pod.Spec.Containers) != 1 || len(pod.Spec.InitContainers) > 0 {
			t.Fatal("the pod has more containers than the broker's")
		}
		if readOnly := pod.Spec.Containers[0].SecurityContext.ReadOnlyRootFilesystem; readOnly == nil || !*readOnly {
			t.Error("the container can write to its file system")
		}
		if user := pod.Spec.SecurityContext.RunAsUser; user == nil || *user == 0 {
			t.Error("the user of the container is not given")
		}
	})
}

// listeners returns the ports that the configuration opens beyond loopback, by name.
func listeners(t *testing.T, r *release) map[string]int32 {
	t.Helper()
	ports := map[string]int32{}
	for name, address := range map[string]string{
		"grpc": r.config.Listen.GRPC.Address, "http": r.config.Listen.HTTP.Address, "ops": r.config.Listen.Ops.Address,
	} {
		if address == "" {
			continue
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		if !net.ParseIP(host).IsLoopback() {
			ports[name] = int32(number)
		}
	}
	return ports
}

func TestPortsAreThoseOfListeners(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		r := install(t, given)
		want := listeners(t, r)
		got := map[string]int32{}
		for _, port := range r.container().Ports {
			got[port.Name] = port.ContainerPort
		}
		if !maps.Equal(got, want) {
			t.Errorf("the container has the ports %v, the configuration %v", got, want)
		}
		checkServices(t, r, want)
		checkProbes(t, r, want)
		checkIngress(t, r, want)
	})
}

// checkServices checks that callers reach all listeners of theirs, and no caller metrics.
func checkServices(t *testing.T, r *release, listeners map[string]int32) {
	t.Helper()
	for _, service := range all[*corev1.Service](r) {
		if !selects(t, &metav1.LabelSelector{MatchLabels: service.Spec.Selector}, r.pod().Labels) {
			t.Errorf("the Service %s does not select the pods", service.Name)
		}
		got, want := map[string]int32{}, maps.Clone(listeners)
		for _, port := range service.Spec.Ports {
			if port.TargetPort.String() != port.Name {
				t.Errorf("the port %s of the Service %s leads to %s", port.Name, service.Name, port.TargetPort.String())
			}
			got[port.Name] = port.Port
		}
		maps.DeleteFunc(want, func(name string, _ int32) bool {
			return (name == "ops") != strings.HasSuffix(service.Name, "-metrics")
		})
		if !maps.Equal(got, want) {
			t.Errorf("the Service %s has the ports %v, not %v", service.Name, got, want)
		}
	}
}

func checkProbes(t *testing.T, r *release, listeners map[string]int32) {
	t.Helper()
	paths := map[string]string{"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
	for name, probe := range map[string]*corev1.Probe{
		"startup": r.container().StartupProbe, "readiness": r.container().ReadinessProbe, "liveness": r.container().LivenessProbe,
	} {
		_, public := listeners["ops"]
		switch {
		case probe == nil:
			t.Errorf("there is no %s probe", name)
		case public:
			if probe.HTTPGet == nil || probe.HTTPGet.Port.String() != "ops" || probe.HTTPGet.Path != paths[name] {
				t.Errorf("the %s probe: %v", name, probe)
			}
		case probe.Exec == nil:
			t.Errorf("the %s probe does not run in the container: %v", name, probe)
		default:
			command := probe.Exec.Command
			if !slices.Equal(command, []string{"/broker", "healthcheck", "--addr", "unix://" + r.config.Listen.Unix.Path}) {
				t.Errorf("the %s probe does not use the broker's socket: %q", name, command)
			}
		}
	}
}

// checkIngress checks that callers reach the APIs and that only Prometheus reaches metrics.
func checkIngress(t *testing.T, r *release, listeners map[string]int32) {
	t.Helper()
	for _, network := range all[*networkingv1.NetworkPolicy](r) {
		if !selects(t, &network.Spec.PodSelector, r.pod().Labels) {
			t.Error("the NetworkPolicy does not select the pods")
		}
		if len(network.Spec.PolicyTypes) != 2 {
			t.Errorf("the NetworkPolicy is for %v only", network.Spec.PolicyTypes)
		}
		open := []int32{}
		for i, rule := range network.Spec.Ingress {
			if len(rule.From) == 0 {
				t.Errorf("anyone may connect to the ports of rule %d", i)
			}
			for _, port := range rule.Ports {
				open = append(open, port.Port.IntVal)
			}
		}
		want := slices.Collect(maps.Values(listeners))
		slices.Sort(open)
		slices.Sort(want)
		if !slices.Equal(open, want) {
			t.Errorf("the NetworkPolicy lets connections to %v through, the broker listens on %v", open, want)
		}
	}
}

func selects(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return !parsed.Empty() && parsed.Matches(labels.Set(set))
}

// fileKeys are the keys of the configuration whose values are files.
var fileKeys = []string{
	"cert", "key", "client_ca", "ca", "certificate", "file", "jwks_file", "secret", "password",
	"sentinel_password", "sealing_keys", "bolt", "socket",
}

// namedFiles returns the files that a part of the configuration names.
func namedFiles(node any) (files []string) {
	switch node := node.(type) {
	case map[string]any:
		for key, value := range node {
			text, isText := value.(string)
			if !isText || !slices.Contains(fileKeys, key) {
				files = append(files, namedFiles(value)...)
				continue
			}
			text = strings.TrimPrefix(strings.TrimPrefix(text, "file:"), "unix://")
			if strings.HasPrefix(text, "/") {
				files = append(files, text)
			}
		}
	case []any:
		for _, item := range node {
			files = append(files, namedFiles(item)...)
		}
	}
	return files
}

func TestNamedFilesAreMounted(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		checkFiles(t, install(t, given))
	})
}

// checkFiles checks that the pod has the files that the configuration names.
func checkFiles(t *testing.T, r *release) {
	t.Helper()
	var parsed any
	if err := yaml.Unmarshal([]byte(r.text), &parsed); err != nil {
		t.Fatal(err)
	}
	for _, file := range append(namedFiles(parsed), r.config.Listen.Unix.Path) {
		if err := mounted(r, file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	var mounts, volumes []string
	for _, mount := range r.container().VolumeMounts {
		mounts = append(mounts, mount.Name)
	}
	for _, volume := range r.volumes() {
		volumes = append(volumes, volume.Name)
	}
	slices.Sort(mounts)
	slices.Sort(volumes)
	if !slices.Equal(mounts, volumes) {
		t.Errorf("the pod has the volumes %v and mounts %v", volumes, mounts)
	}
}

// volumes returns the volumes of a pod, those of a StatefulSet's own claims included.
func (r *release) volumes() []corev1.Volume {
	volumes := slices.Clone(r.pod().Spec.Volumes)
	for _, claim := range r.claims() {
		volumes = append(volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}})
	}
	return volumes
}

// mounted returns an error unless a volume has the file, as far as that can be said.
func mounted(r *release, file string) error {
	for _, mount := range r.container().VolumeMounts {
		rest, below := strings.CutPrefix(file, mount.MountPath+"/")
		if !below {
			continue
		}
		volumes := r.volumes()
		i := slices.IndexFunc(volumes, func(volume corev1.Volume) bool { return volume.Name == mount.Name })
		if i < 0 {
			return fmt.Errorf("there is no volume %s", mount.Name)
		}
		names, complete := contents(&volumes[i])
		if complete && !slices.Contains(names, rest) {
			return fmt.Errorf("the volume %s has only %v", mount.Name, names)
		}
		if secret := volumes[i].Secret; !complete && secret != nil && path.Base(mount.MountPath) != secret.SecretName {
			return fmt.Errorf("the Secret %s is at %s", secret.SecretName, mount.MountPath)
		}
		return nil
	}
	return fmt.Errorf("no volume is mounted there")
}

// contents returns the names of the files in a volume, and whether these are all.
func contents(volume *corev1.Volume) (names []string, complete bool) {
	add := func(items []corev1.KeyToPath) {
		for _, item := range items {
			names = append(names, item.Path)
		}
	}
	switch {
	case volume.Secret != nil:
		add(volume.Secret.Items)
	case volume.Projected != nil:
		for _, source := range volume.Projected.Sources {
			switch {
			case source.Secret != nil:
				add(source.Secret.Items)
			case source.ConfigMap != nil:
				add(source.ConfigMap.Items)
			case source.ServiceAccountToken != nil:
				names = append(names, source.ServiceAccountToken.Path)
			}
		}
	}
	return names, len(names) > 0
}

// A pod is not killed while it drains.
func TestPodsHaveTimeToDrain(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		r := install(t, given)
		grace := time.Duration(*r.pod().Spec.TerminationGracePeriodSeconds) * time.Second
		if drain := r.config.Server.DrainDelay + r.config.Server.DrainTimeout; grace < drain+5*time.Second {
			t.Errorf("a pod is killed after %v, and drains for %v", grace, drain)
		}
	})
}

// All that selects pods selects those of the release, and those of no other release.
func TestSelectorsSelectThePods(t *testing.T) {
	forEachFile(t, func(t *testing.T, given values) {
		r := install(t, given)
		selectors := []*metav1.LabelSelector{r.selector()}
		for _, budget := range all[*policyv1.PodDisruptionBudget](r) {
			selectors = append(selectors, budget.Spec.Selector)
		}
		for _, constraint := range r.pod().Spec.TopologySpreadConstraints {
			selectors = append(selectors, constraint.LabelSelector)
		}
		for _, selector := range selectors {
			other := maps.Clone(r.pod().Labels)
			other["app.kubernetes.io/instance"] = "other"
			if !selects(t, selector, r.pod().Labels) || selects(t, selector, other) {
				t.Errorf("the selector %v selects other pods than those of the release", selector)
			}
		}
	})
}

// Prometheus finds the Service of the metrics and no other.
func TestServiceMonitorFindsMetrics(t *testing.T) {
	r := install(t, parse(t, string(read(t, examplesDir+"/production.yaml"))))
	monitor := the[*monitoring.ServiceMonitor](r)
	for _, service := range all[*corev1.Service](r) {
		found := selects(t, &monitor.Spec.Selector, service.Labels)
		if found != strings.HasSuffix(service.Name, "-metrics") {
			t.Errorf("the ServiceMonitor finds the Service %s: %v", service.Name, found)
		}
		if found && service.Spec.Ports[0].Name != monitor.Spec.Endpoints[0].Port {
			t.Errorf("the ServiceMonitor reads the port %s of the Service, which has %v", monitor.Spec.Endpoints[0].Port, service.Spec.Ports)
		}
	}
}

// The certificate is for the names by which the documents, the notes and OAuth metadata
// name the broker.
func TestCertificateIsForTheNamesOfTheBroker(t *testing.T) {
	r := install(t, parse(t, string(read(t, examplesDir+"/gateway.yaml"))))
	certificate := the[*certmanager.Certificate](r)
	for _, name := range []string{"tokenbroker.identity.svc", "tokenbroker.identity.svc.cluster.local", "tokenbroker.example.com"} {
		if !slices.Contains(certificate.Spec.DNSNames, name) {
			t.Errorf("the certificate is not for %s: %v", name, certificate.Spec.DNSNames)
		}
	}
	if !strings.Contains(r.notes, "tokenbroker.identity.svc:8443") {
		t.Errorf("the notes do not name the broker's address:\n%s", r.notes)
	}
}

// What the broker connects to, the network lets through.
func TestEgressReachesWhatIsConfigured(t *testing.T) {
	given := parse(t, string(read(t, examplesDir+"/production.yaml")))
	given = with(t, given, "config.issuers", []any{
		values{"issuer": "https://issuer.example.com:7443", "audiences": []any{"a"}, "jwks_url": "https://keys.example.com:7444/jwks"},
	})
	given = with(t, given, "config.tracing", values{"endpoint": "https://collector.example.com:4317"})
	network := the[*networkingv1.NetworkPolicy](install(t, given))
	open := map[int32]bool{}
	for _, rule := range network.Spec.Egress {
		for _, port := range rule.Ports {
			open[port.Port.IntVal] = true
		}
	}
	// DNS, IdPs, issuers, traces, the API server, the sentinels and the Redis behind them.
	want := map[int32]bool{53: true, 443: true, 9443: true, 7443: true, 7444: true, 4317: true, 6443: true, 26379: true, 6379: true}
	if !maps.Equal(open, want) {
		t.Errorf("connections to %v are let through", slices.Sorted(maps.Keys(open)))
	}
}

// A broker restarts for a change of what it cannot change itself, and for no other.
func TestPodsRestartOnlyWhereTheyMust(t *testing.T) {
	given := parse(t, string(read(t, examplesDir+"/redis.yaml")))
	before := install(t, given)
	for path, change := range map[string]struct {
		value    any
		restarts bool
	}{
		"config.clients.orders-api.scopes": {[]any{"read"}, false},
		"config.issuers":                   {[]any{values{"issuer": "https://login.example.com", "audiences": []any{"a"}}}, false},
		"config.roles.other":               {values{"get": []any{values{"client": "orders-api"}}}, false},
		"kubernetes.callers":               {[]any{}, false},
		"config.limits.in_flight":          {100, true},
		"config.log.level":                 {"warn", true},
		"config.audit.file":                {"stdout", true},
		"store.redis.prefix":               {"other:", true},
		"grpc.port":                        {9443, true},
	} {
		after := install(t, with(t, given, path, change.value))
		if after.text == before.text {
			t.Errorf("%s does not change the configuration", path)
		}
		const checksum = "checksum/config"
		if restarts := after.pod().Annotations[checksum] != before.pod().Annotations[checksum]; restarts != change.restarts {
			t.Errorf("a change of %s restarts the pods: %v", path, restarts)
		}
	}
}
