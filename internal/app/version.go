package app

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Version is the version of the module that this program was built from, or its
// revision, or "devel".
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		if v := info.Main.Version; v != "" && v != "(devel)" {
			return v
		}
	}
	return cmp.Or(revision(), "devel")
}

// revision is the commit that this program was built from; empty if it is not known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return ""
}

func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "tokenbroker_build_info",
		Help:        "Always 1; the labels name the version, the commit and the version of Go.",
		ConstLabels: prometheus.Labels{"version": Version(), "revision": revision(), "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}
