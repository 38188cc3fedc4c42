package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// statusSource builds the record of this replica from its parts, and publishes it if other
// replicas share the store.
type statusSource struct {
	app       *App
	replica   fleet.Replica
	publisher *fleet.Publisher // nil: the store is not shared
	watcher   *fleet.Watcher
	since     fleet.Tracker
	// others reads the status of the other replicas, as of a second ago at most.
	others func(context.Context) fleet.View
	mu     sync.Mutex
	seen   fleet.Seen // guarded by mu
}

func newStatusSource(a *App) *statusSource {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	s := &statusSource{app: a, replica: fleet.Replica{
		ID: fleet.Name(host + "/" + rand.Text()[:8]), Host: fleet.Name(host), Version: fleet.Name(Version()), Started: time.Now(),
	}}
	s.others = func(context.Context) fleet.View { return fleet.View{} }
	s.watcher = fleet.NewWatcher(fleet.WatcherConfig{Summary: s.summary, Self: s.replica.ID, Logger: a.log, Registerer: a.registry})
	if shared := a.parts.storage; shared.Redis != nil {
		s.publisher = fleet.NewPublisher(fleet.PublisherConfig{Store: shared.Store, MAC: shared.MAC(), Record: s.record, Logger: a.log})
		s.others = fleet.Cached(func(ctx context.Context) fleet.View { return s.publisher.Read(ctx, s.replica.ID) })
	}
	return s
}

// run publishes the status and watches that of the fleet until ctx ends.
func (s *statusSource) run(ctx context.Context) {
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { s.watcher.Run(ctx) })
	if s.publisher == nil {
		return
	}
	reading.Go(func() { s.app.parts.storage.PollKeeping(ctx) })
	s.publisher.Run(ctx)
}

// summary returns the status of the fleet. That of this replica is never from a cache, so
// an operator who changed something here sees the change.
func (s *statusSource) summary(ctx context.Context) fleet.Summary {
	view := s.others(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	record, now := s.record(), time.Now()
	summary := fleet.Summarize(view, &record, now)
	s.seen = summary.Date(s.seen, now)
	return summary
}

func (s *statusSource) record() fleet.Record {
	now, parts := time.Now(), s.app.parts
	setup := parts.setup.Load()
	clients, revocations := parts.broker.LocalClients(now), parts.broker.Revocations().Set
	r := fleet.Record{
		Replica:             s.replica,
		Config:              fleet.Config{Digest: setup.config.Digest, Applied: setup.applied, Refused: s.app.metrics.refusedSince()},
		Revocations:         fleet.Revocations{Count: revocations.Count(), Usable: revocations.Ready(), Loaded: revocations.Current()},
		Store:               s.store(parts.broker.StoreHealth(), now),
		Audit:               s.audit(parts.audit, now),
		Tracing:             fleet.Tracing{On: parts.traces != nil, Failing: s.since.Since("tracing", parts.traces.Failing(), now)},
		Certificates:        s.certificates(setup),
		CertificatesFailing: s.since.Since("certificates", s.app.listen.certs != nil && s.app.listen.certs.Status().Failing, now),
	}
	if rings := parts.storage.Rings; rings != nil {
		ring := rings.Current()
		mismatch := errors.Is(revocations.Unreadable(), sealed.ErrAnotherRing)
		r.Ring = &fleet.Ring{Primary: fleet.Name(ring.Primary()), Applied: rings.Applied(), Mismatch: s.since.Since("ring", mismatch, now)}
		for _, id := range ring.IDs() {
			r.Ring.IDs = append(r.Ring.IDs, fleet.Name(id))
		}
	}
	for _, one := range setup.verifier.Status() {
		r.Issuers = append(r.Issuers, fleet.Issuer{
			Name: fleet.Name(one.Issuer), Keys: one.Keys, Loaded: one.LoadedAt, MaxStale: one.MaxStale, Failure: causeOfKeys(one.Err),
		})
	}
	delays := parts.keys.Delays(now)
	for i := range clients {
		one := s.client(&clients[i], now)
		if client, ok := setup.named(clients[i].Name); ok && client.Supplied != nil {
			one.SourceFailing = parts.feeder.FailingSince(client.Supplied)
		}
		key, made := delays[clients[i].Name]
		if one.Key = key; made {
			one.Pending, one.PendingRefused = time.Time{}, time.Time{}
		}
		r.Clients = append(r.Clients, one)
	}
	return r
}

func (s *statusSource) audit(log *audit.Log, now time.Time) fleet.Audit {
	status := log.Status()
	return fleet.Audit{On: log != nil, Failing: s.since.Since("audit", status.Failing, now), Lost: status.Lost, LostAt: status.LostAt}
}

func (s *statusSource) store(health []store.Health, now time.Time) fleet.Store {
	kinds := map[string]fleet.StoreKind{"memory": fleet.Memory, "bolt": fleet.Bolt, "redis": fleet.Redis}
	opened := s.app.parts.storage
	all := fleet.Store{Kind: kinds[opened.Kind], KeepsSecrets: opened.KeepsSecrets}
	all.Durable, all.Evicts = opened.Keeping()
	for _, one := range health {
		all.Servers = append(all.Servers, fleet.Server{
			Name: fleet.Name(one.Shard), Reads: one.Reads, Writes: one.Writes, Cause: causeOfStore(one),
			ReadsSince: s.since.Since("reads "+one.Shard, !one.Reads, now), WritesSince: s.since.Since("writes "+one.Shard, !one.Writes, now),
			Written: s.since.Since("written "+one.Shard, one.Writes, now),
		})
	}
	return all
}

func (s *statusSource) certificates(setup *setup) (all []fleet.Certificate) {
	if source := s.app.listen.certs; source != nil {
		status := source.Status()
		all = append(all, fleet.Certificate{Use: fleet.ListenerUse, Name: fleet.Name(status.Name), Begins: status.Begins, Ends: status.Expires})
		all = append(all, callerAuthorities(status.Authorities)...)
	}
	for file, network := range setup.trusting {
		all = append(all, fleet.Certificate{Use: fleet.IdPAuthority, Name: fleet.Name(file), Ends: network.AuthoritiesExpire()})
	}
	for _, client := range setup.clients {
		if _, ends, ok := client.IdP.Certificate(); ok {
			all = append(all, fleet.Certificate{Use: fleet.ClientUse, Name: fleet.Name(client.Name), Begins: client.IdP.CertificateBegins(), Ends: ends})
		}
	}
	return all
}

// callerAuthorities returns the last authority of each name: the others expire when an
// authority is replaced.
func callerAuthorities(authorities []certs.Authority) (all []fleet.Certificate) {
	last := map[string]certs.Authority{}
	for _, one := range authorities {
		if one.Expires.After(last[one.Name].Expires) {
			last[one.Name] = one
		}
	}
	for name, one := range last {
		all = append(all, fleet.Certificate{Use: fleet.CallerAuthority, Name: fleet.Name(name), Begins: one.Begins, Ends: one.Expires})
	}
	return all
}

func (s *statusSource) client(c *broker.ClientStatus, now time.Time) fleet.Client {
	one := fleet.Client{
		Name: fleet.Name(c.Name), State: clientStates[c.State], Success: c.LastSuccess,
		Generation: c.Generation, Changed: s.since.Changed("generation "+c.Name, c.Generation, now), Fallback: s.since.Since("fallback "+c.Name, c.Fallback, now),
	}
	if !c.LastFailure.IsZero() {
		one.Failed, one.Failure, one.Resolved = c.LastFailure, causes[c.FailureClass], c.Resolved
	}
	if one.State == fleet.ClientFailing {
		one.Home = fleet.Name(c.About.Issuer)
	}
	for _, version := range c.Versions {
		if version.Since.After(one.Changed) {
			one.Changed = version.Since
		}
		switch version.State {
		case secret.Current:
			one.SecretSince = version.Since
		case secret.Pending:
			one.Pending, one.PendingRefused = version.Since, version.RefusedAt
		case secret.Previous, secret.Retired:
		}
	}
	return one
}

//nolint:gochecknoglobals // constants that Go cannot express as such
var (
	clientStates = map[broker.ClientState]fleet.ClientState{
		broker.ClientIdle: fleet.ClientIdle, broker.ClientOK: fleet.ClientOK, broker.ClientFailing: fleet.ClientFailing,
		broker.ClientRefused: fleet.ClientRefused, broker.ClientThrottled: fleet.ClientThrottled, broker.ClientNoSecret: fleet.ClientNoSecret,
	}
	causes = map[idp.Class]fleet.Cause{
		idp.Transient: fleet.Unreachable, idp.Throttled: fleet.Throttled, idp.CredentialRefused: fleet.SecretRefused,
		idp.RequestRefused: fleet.RequestRefused, idp.Misconfigured: fleet.Misconfigured,
	}
	refusals = map[store.Refusal]fleet.Cause{
		store.ReadOnly: fleet.ReadOnly, store.OutOfMemory: fleet.OutOfMemory, store.DiskFailed: fleet.DiskFailed,
		store.FewReplicas: fleet.FewReplicas, store.NoRights: fleet.NoRights,
	}
)

// causeOfStore returns why a server fails. Zero: it does not.
func causeOfStore(one store.Health) fleet.Cause {
	switch {
	case !one.Reads:
		return fleet.Unreachable
	case one.Writes:
		return fleet.NoCause
	default:
		return cmp.Or(refusals[one.Refusal], fleet.Unknown)
	}
}

// causeOfKeys classifies the error of a fetch of keys, without its text.
func causeOfKeys(err error) fleet.Cause {
	if err == nil {
		return fleet.NoCause
	}
	if failure, ok := errors.AsType[*discovery.Error](err); ok && failure.Unreachable {
		return fleet.Unreachable
	}
	return fleet.Misconfigured
}
