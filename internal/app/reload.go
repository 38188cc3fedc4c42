package app

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// watchInterval is the interval between checks of the configuration file.
const watchInterval = time.Second

// Reload applies another configuration: clients, issuers, callers and roles atomically.
// Sections that need a restart keep their values, and the log names them. After an error
// the previous configuration stays active. It is safe for concurrent use.
func (a *App) Reload(config *config.Config) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	err := a.reload(config)
	a.metrics.reloaded(err)
	a.reloaded(config.Digest, err)
	if err != nil {
		a.log.Error("the new configuration is not applied; the previous one stays active", "error", err)
		return err
	}
	a.log.Info("a new configuration is active", "clients", len(config.Clients), "issuers", len(config.Issuers),
		"callers", len(config.Callers), "roles", len(config.Roles))
	return nil
}

func (a *App) reload(config *config.Config) error {
	next, err := a.parts.prepare(config)
	if err != nil {
		return err
	}
	before := a.parts.setup.Load()
	if err := a.parts.broker.Apply(next.forBroker()); err != nil {
		return err
	}
	stopBefore := a.stopSetup
	a.parts.use(next)
	a.stopSetup = a.runSetup(next)
	stopBefore()
	before.verifier.DeleteMetricsExcept(next.verifier)
	a.logWarnings(next)
	if sections := needRestart(a.config, config); len(sections) > 0 {
		a.log.Warn("some changes need a restart to take effect", "sections", strings.Join(sections, ", "))
	}
	return nil
}

// runSetup keeps the issuers' keys and the clients' certificates of a setup up to date.
// The returned function stops the refresh and waits for its end.
func (a *App) runSetup(s *setup) (stop func()) {
	ctx, cancel := context.WithCancel(a.background)
	a.running.Go(func() { s.verifier.Run(ctx) })
	a.running.Go(func() { s.pollCertificates(ctx, a.log) })
	return cancel
}

func (a *App) logWarnings(s *setup) {
	for _, warning := range slices.Concat(s.config.Warnings, s.config.ExposedFiles()) {
		a.log.Warn("the configuration: " + warning.String())
	}
	for name, doubt := range s.doubtfulSecrets() {
		a.log.Warn("a secret "+doubt, "client", name)
	}
}

// needRestart returns the changed sections that are read only at startup.
func needRestart(running, next *config.Config) (sections []string) {
	for _, section := range []struct {
		name         string
		before, then any
	}{
		{"listen", running.Listen, next.Listen},
		{"store", running.Store, next.Store},
		{"server", running.Server, next.Server},
		{"limits", serverLimits(&running.Limits), serverLimits(&next.Limits)},
		{"gateways", running.Gateways, next.Gateways},
		{"log", running.Log, next.Log},
		{"audit", running.Audit, next.Audit},
		{"tracing", running.Tracing, next.Tracing},
	} {
		if !reflect.DeepEqual(section.before, section.then) {
			sections = append(sections, section.name)
		}
	}
	return sections
}

// reloadMetrics count the results of reloads of the configuration.
type reloadMetrics struct {
	applied, refused   prometheus.Counter
	appliedAt, failing prometheus.Gauge
	// refusedAt is since when the file contains a configuration that cannot be applied;
	// nil: it does not.
	refusedAt atomic.Pointer[time.Time]
}

// refusedSince is zero if the file is applied.
func (m *reloadMetrics) refusedSince() time.Time {
	if at := m.refusedAt.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

func newReloadMetrics(registerer prometheus.Registerer) *reloadMetrics {
	reloads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokenbroker_config_reloads_total",
		Help: "Configurations that were read after the start, by result: applied or refused.",
	}, []string{"result"})
	m := &reloadMetrics{
		applied: reloads.WithLabelValues("applied"),
		refused: reloads.WithLabelValues("refused"),
		appliedAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tokenbroker_config_applied_timestamp_seconds",
			Help: "When the active configuration was applied, in seconds of the epoch.",
		}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tokenbroker_config_reload_failing",
			Help: "1 while the configuration file cannot be read or applied, so that another configuration is active, else 0.",
		}),
	}
	m.appliedAt.SetToCurrentTime()
	registerer.MustRegister(reloads, m.appliedAt, m.failing)
	return m
}

func (m *reloadMetrics) reloaded(err error) {
	if err != nil {
		m.refused.Inc()
		now := time.Now()
		m.refusedAt.CompareAndSwap(nil, &now)
		m.failing.Set(1)
		return
	}
	m.applied.Inc()
	m.refusedAt.Store(nil)
	m.failing.Set(0)
	m.appliedAt.SetToCurrentTime()
}

// watchFile applies the configuration file when its content changes or hangup fires,
// until ctx ends. A change counts when it was read twice, an interval apart, because a
// file may be seen half written; after a hangup it counts as complete.
func (a *App) watchFile(ctx context.Context, hangup <-chan os.Signal) {
	watched := watchedFile{path: a.file}
	if data, err := watched.read(); err == nil {
		a.catchUp(data)
	}
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		look := watched.look
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			a.parts.audit.Reopen()
			a.log.Info("SIGHUP: reloading the configuration and the certificates")
			a.reloadCerts()
			look = watched.read
		case <-ticker.C:
		}
		switch data, err := look(); {
		case err != nil:
			a.refuse([sha256.Size]byte{}, err)
		case data != nil:
			a.reloadFile(data)
		}
	}
}

// catchUp applies a change that was written while the broker started.
func (a *App) catchUp(data []byte) {
	config, err := config.Parse(a.file, data)
	if err == nil && !reflect.DeepEqual(config, a.config) {
		_ = a.Reload(config) // Reload logs the error
	}
}

func (a *App) reloadFile(data []byte) {
	config, err := config.Parse(a.file, data)
	if err != nil {
		a.refuse(sha256.Sum256(data), err)
		return
	}
	_ = a.Reload(config) // Reload logs the error
}

func (a *App) refuse(digest [sha256.Size]byte, err error) {
	a.metrics.reloaded(err)
	a.reloaded(digest, err)
	a.log.Error("the configuration file is not applied; the previous configuration stays active", "error", err)
}

// watchedFile detects when the content of a file has changed and is stable.
type watchedFile struct {
	path string

	seen     os.FileInfo // at the last read of the content
	digest   [sha256.Size]byte
	restless bool // the content was read once since it changed
	failing  bool // it cannot be read, and the error was logged
}

// read returns the current content.
func (w *watchedFile) read() ([]byte, error) {
	// Stat precedes the read: a change between the two is seen at the next look.
	info, err := os.Stat(w.path)
	if err == nil {
		var data []byte
		if data, err = yamlconf.Read(w.path); err == nil {
			w.seen, w.digest, w.restless, w.failing = info, sha256.Sum256(data), false, false
			return data, nil
		}
	}
	w.failing = true
	return nil, err
}

// look returns the content if it has changed and was the same at the last look, and
// otherwise nil. An error is returned once until it is over; then the content counts as
// changed.
func (w *watchedFile) look() ([]byte, error) {
	info, err := os.Stat(w.path)
	if err == nil && w.seen != nil && !w.restless && !w.failing && unchanged(w.seen, info) {
		return nil, nil
	}
	before, restless, failing := w.digest, w.restless, w.failing
	data, err := w.read()
	switch {
	case err != nil && failing:
		return nil, nil
	case err != nil:
		return nil, err
	case w.digest != before || failing:
		w.restless = true
		return nil, nil
	case restless:
		return data, nil
	default:
		return nil, nil
	}
}

// unchanged compares the attributes that change when a file is written or replaced.
func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// doubtfulSecrets returns warnings, by client, about secrets with bytes that are probably
// a mistake.
func (s *setup) doubtfulSecrets() map[string]string {
	doubts := map[string]string{}
	for _, client := range s.clients {
		if client.Secret == nil {
			continue
		}
		for _, version := range client.Secret.Versions() {
			if doubt := client.IdP.SecretWarning(version.Value); doubt != "" {
				doubts[client.Name] = fmt.Sprintf("(version %s in %s) %s; it is sent to the IdP as it is", version.ID, client.Secret.Ref(), doubt)
			}
		}
	}
	return doubts
}
