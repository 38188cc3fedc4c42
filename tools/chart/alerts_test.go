package chart

import (
	"path/filepath"
	"slices"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// The chart can read files in its own folder only, so it has a copy of the alerts.
func TestChartHasTheAlerts(t *testing.T) {
	files, err := filepath.Glob("../../deploy/prometheus/*.yaml")
	if err != nil || len(files) != 1 {
		t.Fatalf("deploy/prometheus has the rules %v (%v), the chart expects one file", files, err)
	}
	rules := read(t, files[0])
	compare(t, chartDir+"/files/"+filepath.Base(files[0]), rules)

	given := parse(t, string(read(t, examplesDir+"/production.yaml")))
	var want monitoring.PrometheusRuleSpec
	if err := yaml.UnmarshalStrict(rules, &want); err != nil {
		t.Fatal(err)
	}
	got := the[*monitoring.PrometheusRule](install(t, given)).Spec
	if len(want.Groups) == 0 || len(got.Groups) != len(want.Groups) {
		t.Fatalf("%d groups, not %d", len(got.Groups), len(want.Groups))
	}
	for i := range want.Groups {
		same := func(a, b monitoring.Rule) bool {
			return a.Alert == b.Alert && a.Expr == b.Expr && a.Annotations["summary"] == b.Annotations["summary"]
		}
		if !slices.EqualFunc(got.Groups[i].Rules, want.Groups[i].Rules, same) {
			t.Errorf("the rules of group %s differ", want.Groups[i].Name)
		}
	}
}
