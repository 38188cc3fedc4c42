package policyreview

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unique"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// The values of the generated policies. The last of each list is never configured, so that
// only "*" allows it.
var (
	someAudiences = []string{"a1", "a2", "a3"}
	someResources = []string{"r1", "r2", "r3"}
	someScopes    = []string{"s1", "s2", "s3"}
	someClients   = []string{"c1", "c2"}
	someIssuers   = []string{"i1", "i2"}
)

// drawSome draws a subset of the values but the last one.
func drawSome(t *rapid.T, values []string, label string) []string {
	var some []string
	for _, value := range values[:len(values)-1] {
		if rapid.Bool().Draw(t, label+" "+value) {
			some = append(some, value)
		}
	}
	return some
}

// drawList draws a list of a grant: absent, "*" or some values.
func drawList(t *rapid.T, values []string, label string) []string {
	if rapid.IntRange(0, 4).Draw(t, label) == 0 {
		return []string{policy.Any}
	}
	return drawSome(t, values, label)
}

func drawConfig(t *rapid.T) policy.Config {
	cfg := policy.Config{Roles: map[string]policy.Role{}, Clients: map[string]policy.Defaults{}, Issuers: map[string][]string{}}
	for _, client := range someClients {
		if rapid.IntRange(0, 5).Draw(t, "without "+client) > 0 {
			audience := rapid.SampledFrom([]string{"", "a1", "a2"}).Draw(t, "default audience")
			cfg.Clients[client] = policy.Defaults{Audience: audience, Resources: drawSome(t, someResources, "default"), Scopes: drawSome(t, someScopes, "default")}
		}
	}
	for _, issuer := range someIssuers {
		if rapid.IntRange(0, 5).Draw(t, "without "+issuer) > 0 {
			cfg.Issuers[issuer] = append([]string{"a1"}, drawSome(t, someAudiences[1:], issuer)...)
		}
	}
	roles := []string{"role1", "role2"}
	for _, name := range roles {
		var role policy.Role
		for range rapid.IntRange(0, 2).Draw(t, "gets") {
			role.Get = append(role.Get, policy.GetGrant{
				Client:    rapid.SampledFrom([]string{"c1", "c2", policy.Any}).Draw(t, "client"),
				Audiences: drawList(t, someAudiences, "audiences"), Resources: drawList(t, someResources, "resources"), Scopes: drawList(t, someScopes, "scopes"),
			})
		}
		for range rapid.IntRange(0, 2).Draw(t, "verifies") {
			role.Verify = append(role.Verify, policy.VerifyGrant{
				Issuer: rapid.SampledFrom([]string{"i1", "i2", policy.Any}).Draw(t, "issuer"), Audiences: drawList(t, someAudiences, "audiences"),
			})
		}
		for range rapid.IntRange(0, 2).Draw(t, "admins") {
			role.Admin = append(role.Admin, policy.AdminGrant{
				Actions: rapid.SampledFrom([][]policy.Action{{policy.AnyAction}, {policy.RevokeTokens}, {policy.PurgeTokens, policy.ListClients}, {policy.GetClient}}).Draw(t, "actions"),
				Clients: drawList(t, []string{"c1", "c2", "gone"}, "clients"),
			})
		}
		cfg.Roles[name] = role
	}
	held := slices.DeleteFunc(slices.Clone(roles), func(string) bool { return !rapid.Bool().Draw(t, "role") })
	if rapid.IntRange(0, 9).Draw(t, "without caller") > 0 {
		cfg.Callers = []policy.CallerConfig{{Name: "caller", Match: policy.Match{DNSSAN: "caller.example.com"}, Roles: held}}
	}
	return cfg
}

// subsets returns all subsets, the empty one included.
func subsets(values []string) [][]string {
	all := [][]string{nil}
	for _, value := range values {
		for _, some := range slices.Clone(all) {
			all = append(all, append(slices.Clone(some), value))
		}
	}
	return all
}

// decided is what all possible requests say about two configurations.
type decided struct{ gain, loss, change bool }

// decideAll submits every request about the values to the policies of both configurations.
func decideAll(before, after policy.Config) map[Kind]*decided {
	all := map[Kind]*decided{Get: {}, Verify: {}, Admin: {}}
	old, updated := newSide(before), newSide(after)
	oldCaller, newCaller := old.policy.Named("caller"), updated.policy.Named("caller")
	note := func(kind Kind, was, is bool) {
		all[kind].loss = all[kind].loss || was && !is
		all[kind].gain = all[kind].gain || is && !was
	}
	for _, client := range someClients {
		for _, audience := range append([]string{""}, someAudiences...) {
			for _, resources := range subsets(someResources) {
				for _, scopes := range subsets(someScopes) {
					a := ask{client, audience, resources, scopes}
					was, is := old.token(oldCaller, a), updated.token(newCaller, a)
					note(Get, was.allowed, is.allowed)
					note(Get, was.allowed && was.received, is.allowed && is.received) // the IdP grants what it was asked for
					if len(scopes) > 0 {
						for _, granted := range subsets(someScopes)[1:] {
							note(Get, was.allowed && oldCaller.MayReceive(was.request, granted), is.allowed && newCaller.MayReceive(is.request, granted))
						}
					}
					if was.allowed && is.allowed && fmt.Sprint(was.request) != fmt.Sprint(is.request) {
						all[Get].change = true
					}
				}
			}
		}
	}
	for _, issuer := range someIssuers {
		for _, of := range someAudiences {
			note(Verify, old.accepts(oldCaller, issuer, nil, of), updated.accepts(newCaller, issuer, nil, of))
			for _, audiences := range subsets(someAudiences)[1:] {
				note(Verify, old.accepts(oldCaller, issuer, audiences, of), updated.accepts(newCaller, issuer, audiences, of))
			}
		}
	}
	for _, action := range policy.Actions() {
		for _, client := range []string{"", "c1", "c2", "gone", "never"} {
			if client == "" || !clientless(action) {
				note(Admin, oldCaller.MayDo(action, client), newCaller.MayDo(action, client))
			}
		}
	}
	return all
}

// accepts reports whether the caller gets a token for an audience accepted that is good
// otherwise.
func (s *side) accepts(caller *policy.Caller, issuer string, audiences []string, of string) bool {
	issuers, ok := caller.MayVerify()
	permitted, has := issuers[issuer]
	may := func(audience string) bool { return permitted == nil || slices.Contains(permitted, audience) }
	if !ok || !has {
		return false
	}
	if len(audiences) == 0 {
		return slices.Contains(s.cfg.Issuers[issuer], of) && may(of)
	}
	return slices.Contains(audiences, of) && !slices.ContainsFunc(audiences, func(a string) bool { return !may(a) })
}

func TestDiffReportsExactlyWhatIsDecidedDifferently(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawConfig(t), drawConfig(t)
		switch other := after; rapid.IntRange(0, 3).Draw(t, "the difference") { // in all, in a role, in the clients, in the issuers
		case 1:
			after = before
			after.Roles = map[string]policy.Role{"role1": other.Roles["role1"], "role2": before.Roles["role2"]}
		case 2:
			after = before
			after.Clients = other.Clients
		case 3:
			after = before
			after.Issuers = other.Issuers
		}
		old, updated := newSide(before), newSide(after)
		found := compare(old, updated, pairs(old, updated))
		for kind, want := range decideAll(before, after) {
			var got decided
			for _, d := range found {
				if d.Kind == kind {
					got.gain, got.loss, got.change = got.gain || d.Effect == Gain, got.loss || d.Effect == Loss, got.change || d.Effect == Change
				}
			}
			if got.gain != want.gain || got.loss != want.loss || want.change && got == (decided{}) || got.change && !want.change {
				t.Fatalf("%s: found %+v, and the requests say %+v: %+v", kind, got, *want, found)
			}
		}
	})
}

// write runs the part of the broker that decides about a request and writes its line.
func (s *side) write(log *audit.Log, name string, a ask, granted []string) Verdict {
	caller := s.policy.Named(name)
	o := s.token(caller, a)
	e := audit.Event{Event: audit.Token, Outcome: audit.Denied, Caller: name, Reason: "NOT_ENTITLED", Client: a.client}
	req := fill(a, s.cfg.Clients[a.client])
	if o.allowed {
		req = o.request
	}
	e.Resources, e.Scopes = req.Resources, req.Scopes
	if req.Audience != "" {
		e.Audiences = []string{req.Audience}
	}
	if len(granted) == 0 {
		granted = o.request.Scopes
	}
	switch {
	case !o.allowed:
	case !caller.MayReceive(o.request, granted):
		e.Reason = "GRANTED_SCOPES_NOT_ENTITLED"
	default:
		e.GrantedScopes = granted
		_ = log.Given(e).To(context.Background(), unique.Make(name), "memory", false)
		return Allowed
	}
	log.Record(&e)
	return Denied
}

func TestReplayAgreesWithThePolicy(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawConfig(t), drawConfig(t)
		old, updated := newSide(before), newSide(after)
		a := drawAsk(t)
		granted := rapid.SampledFrom(subsets(someScopes)).Draw(t, "granted")
		file := filepath.Join(dir, "audit.jsonl")
		_ = os.Remove(file)
		written, err := audit.Open(audit.Config{File: file, From: func(context.Context) string { return "" }})
		if err != nil {
			t.Fatal(err)
		}
		was := old.write(written, "caller", a, granted)
		_ = written.Close()
		r := readLog(t, file).order[0]
		if own := judge(old, old, "caller", r); own.Verdict != was && (own.Verdict != Depends || !r.tooMuch) {
			t.Fatalf("%+v by its own configuration: %+v", r, own)
		}
		if was == Allowed && len(old.uses("caller", r)) == 0 {
			t.Fatalf("no grant allows %+v", r)
		}
		caller := updated.policy.Named("caller")
		o := updated.token(caller, a)
		if was == Denied || len(granted) == 0 || strings.Join(o.request.Scopes, " ") != strings.Join(r.scopes, " ") {
			granted = o.request.Scopes // the log does not have other scopes that the IdP would grant
		}
		is := Denied
		if o.allowed && caller.MayReceive(o.request, granted) {
			is = Allowed
		}
		if got := judge(old, updated, "caller", r); got.Verdict != is && got.Verdict != Depends {
			t.Fatalf("%+v was %s; for %+v the new policy says %s and the replay %+v", r, was, a, is, got)
		}
	})
}

// Without the grants that no recorded request used, a configuration allows the same
// recorded requests.
func TestUnusedGrantsCanBeRemoved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	rapid.Check(t, func(t *rapid.T) {
		cfg := drawConfig(t)
		full := newSide(cfg)
		caller := full.policy.Named("caller")
		_ = os.Remove(file)
		written, err := audit.Open(audit.Config{File: file, From: func(context.Context) string { return "" }, Verifications: audit.AllVerifications})
		if err != nil {
			t.Fatal(err)
		}
		type decision func(s *side, caller *policy.Caller) string
		var decisions []decision
		for range rapid.IntRange(1, 6).Draw(t, "requests") {
			a := drawAsk(t)
			issuer, audiences := rapid.SampledFrom(someIssuers).Draw(t, "issuer"), rapid.SampledFrom(subsets(someAudiences)).Draw(t, "audiences")
			action, client := rapid.SampledFrom(policy.Actions()).Draw(t, "action"), rapid.SampledFrom([]string{"", "c1", "gone"}).Draw(t, "client of action")
			if full.write(written, "caller", a, nil) == Allowed {
				decisions = append(decisions, func(s *side, caller *policy.Caller) string { return fmt.Sprint(s.token(caller, a)) })
			}
			for _, of := range someAudiences {
				if full.accepts(caller, issuer, audiences, of) {
					decisions = append(decisions, func(s *side, caller *policy.Caller) string {
						return fmt.Sprint(s.accepts(caller, issuer, audiences, of))
					})
					written.Record(&audit.Event{Event: audit.Verification, Outcome: audit.Active, Caller: "caller", Issuer: issuer, Audiences: audiences})
				}
			}
			if full.mayDo(caller, action, client) {
				decisions = append(decisions, func(s *side, caller *policy.Caller) string { return fmt.Sprint(s.mayDo(caller, action, client)) })
				written.Record(&audit.Event{Event: audit.Admin, Outcome: audit.OK, Caller: "caller", Action: string(action), Client: client})
			}
		}
		_ = written.Close()
		log := readLog(t, file)
		used := map[Grant]bool{}
		for _, r := range log.order {
			if r.allowed() {
				for _, g := range full.uses("caller", r) {
					used[g.Grant] = true
				}
			}
		}
		needed := newSide(onlyGrants(cfg, used))
		for _, decide := range decisions {
			if before, after := decide(full, caller), decide(needed, needed.policy.Named("caller")); before != after {
				t.Fatalf("with all grants %s, with the used ones %s: %+v", before, after, used)
			}
		}
	})
}

func onlyGrants(cfg policy.Config, used map[Grant]bool) policy.Config {
	roles := map[string]policy.Role{}
	for name, role := range cfg.Roles {
		var kept policy.Role
		for i, g := range role.Get {
			if used[Grant{name, Get, i}] {
				kept.Get = append(kept.Get, g)
			}
		}
		for i, g := range role.Verify {
			if used[Grant{name, Verify, i}] {
				kept.Verify = append(kept.Verify, g)
			}
		}
		for i, g := range role.Admin {
			if used[Grant{name, Admin, i}] {
				kept.Admin = append(kept.Admin, g)
			}
		}
		roles[name] = kept
	}
	cfg.Roles = roles
	return cfg
}

func drawAsk(t *rapid.T) ask {
	return ask{
		rapid.SampledFrom(someClients).Draw(t, "client"), rapid.SampledFrom(append([]string{""}, someAudiences...)).Draw(t, "audience"),
		rapid.SampledFrom(subsets(someResources)).Draw(t, "resources"), rapid.SampledFrom(subsets(someScopes)).Draw(t, "scopes"),
	}
}

func readLog(t *rapid.T, file string) *Log {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	log := NewLog()
	if err := log.Read("audit.jsonl", bytes.NewReader(text)); err != nil || log.Bad > 0 {
		t.Fatalf("%v, %q: %s", err, log.BadLines, text)
	}
	return log
}
