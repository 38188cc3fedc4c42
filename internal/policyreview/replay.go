package policyreview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Verdict is the decision of a configuration about a recorded request.
type Verdict string

// The verdicts.
const (
	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	// Depends: the decision depends on facts that the log does not have, which Why names.
	Depends Verdict = "depends"
)

// Request is a recorded request that a configuration decides otherwise than the log has it.
type Request struct {
	Count  uint64    `json:"count"`
	Last   time.Time `json:"last"`
	Caller string    `json:"caller"`
	Kind   Kind      `json:"kind"`
	// Recorded is Allowed or Denied. Before and After are the decisions of the old and of
	// the new configuration.
	Recorded Verdict `json:"recorded"`
	Before   Verdict `json:"before"`
	After    Verdict `json:"after"`
	// Why says why the new configuration denies the request.
	Why string `json:"why,omitempty"`
	// Lines are the lines of the grants of the old configuration that allow it.
	Lines []string `json:"lines,omitempty"`

	Client    string   `json:"client,omitempty"`
	Issuer    string   `json:"issuer,omitempty"`
	Action    string   `json:"action,omitempty"`
	Audiences []string `json:"audiences,omitempty"`
	Resources []string `json:"resources,omitempty"`
	Scopes    []string `json:"scopes,omitempty"`
	// GrantedScopes are the scopes of the token, if they differ from Scopes.
	GrantedScopes []string `json:"granted_scopes,omitempty"`
}

// Replay judges the requests of a log by both files of a comparison, and returns those
// that the new file decides otherwise than the log has them, the most frequent first.
// undecidable counts the other requests about which the log has too little.
func (c *Comparison) Replay(log *Log) (found []Request, undecidable uint64) {
	names := map[string]string{}
	for _, p := range c.pairs {
		names[p.old] = p.updated
	}
	for _, r := range log.order {
		name, known := names[r.caller]
		if !known {
			name = r.caller // of an earlier configuration
		}
		before, after := judge(c.old.side, c.old.side, r.caller, r), judge(c.old.side, c.updated.side, name, r)
		switch {
		case after.Verdict == r.verdict():
			continue
		case after.Verdict == Depends && before.Verdict == Depends && !r.allowed():
			undecidable += r.count
			continue
		}
		request := newRequest(r, after.why)
		request.Before, request.After = before.Verdict, after.Verdict
		for _, g := range c.old.side.uses(r.caller, r) {
			request.Lines = appendNew(request.Lines, c.old.place(g.Grant))
		}
		found = append(found, request)
	}
	sortRequests(found)
	return found, undecidable
}

// Judge judges the requests of a log by the file, and returns those that it decides otherwise
// than the log has them. undecidable is that of Replay.
func (f *File) Judge(log *Log) (found []Request, undecidable uint64) {
	return Compare(f, f).Replay(log)
}

// verdict is the recorded decision.
func (r *recorded) verdict() Verdict {
	if r.allowed() {
		return Allowed
	}
	return Denied
}

func newRequest(r *recorded, why string) Request {
	request := Request{
		Count: r.count, Last: r.last, Caller: r.caller, Kind: r.kind, Recorded: r.verdict(), Why: why, Client: r.client, Issuer: r.issuer,
		Action: string(r.action), Audiences: r.audiences, Resources: r.resources, Scopes: r.scopes,
	}
	if !slices.Equal(r.granted, r.scopes) {
		request.GrantedScopes = r.granted
	}
	return request
}

func sortRequests(requests []Request) {
	slices.SortStableFunc(requests, func(a, b Request) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Caller, b.Caller), b.Last.Compare(a.Last))
	})
}

// judgement is a verdict with its reason.
type judgement struct {
	Verdict
	why string
}

// judge decides about a recorded request by the configuration to. ref is the configuration
// under which the log was probably written: it tells which values of the request may be
// defaults. name is the name of the caller in to.
func judge(ref, to *side, name string, r *recorded) judgement {
	caller := to.policy.Named(name)
	if caller == nil {
		return judgement{Denied, "no such caller"}
	}
	switch r.kind {
	case Get:
		return judgeToken(ref, to, caller, r)
	case Verify:
		return judgeVerification(ref, to, caller, r)
	default:
		if to.mayDo(caller, r.action, r.client) {
			return judgement{Verdict: Allowed}
		}
		return judgement{Denied, to.whyNotAdmin(r)}
	}
}

// judgeToken judges all requests that may have led to the line. The line has the defaults
// filled in and does not tell which values the caller named.
func judgeToken(ref, to *side, caller *policy.Caller, r *recorded) judgement {
	var all []judgement
	for _, a := range ref.readings(r) {
		all = append(all, to.judgeAsk(caller, a, r))
	}
	result := all[0]
	for _, j := range all[1:] {
		if j.Verdict != result.Verdict {
			why := result.why + j.why // at least one has a reason
			if result.why != "" && j.why != "" {
				why = result.why
			}
			return judgement{Depends, why + "; the log does not tell whether the request named its values or left them to the defaults"}
		}
	}
	return result
}

// judgeAsk judges one request that may have led to the line.
func (s *side) judgeAsk(caller *policy.Caller, a ask, r *recorded) judgement {
	o := s.token(caller, a)
	switch {
	case !o.allowed:
		return judgement{Denied, s.whyNotToken(caller, a)}
	case r.tooMuch:
		return judgement{Depends, "the IdP granted scopes that the log does not name"}
	}
	granted := o.request.Scopes // what the IdP probably grants
	if r.allowed() && slices.Equal(o.request.Scopes, r.scopes) {
		granted = r.granted
	}
	if caller.MayReceive(o.request, granted) {
		return judgement{Verdict: Allowed}
	}
	if len(granted) == 0 {
		return judgement{Denied, "the IdP does not name the granted scopes, and the grants list scopes"}
	}
	return judgement{Denied, "no grant allows the scopes that the IdP granted, which are " + strings.Join(granted, ", ")}
}

// readings returns the requests that may have led to the line of a log under this
// configuration. Without one, the log was written under another configuration, and all
// requests that the line may stand for are returned.
func (s *side) readings(r *recorded) []ask {
	var all, consistent []ask
	full := ask{client: r.client, resources: r.resources, scopes: r.scopes}
	if len(r.audiences) > 0 {
		full.audience = r.audiences[0]
	}
	defaults := s.cfg.Clients[r.client]
	for choice := range 8 {
		a := full
		if choice&1 != 0 {
			a.audience = ""
		}
		if choice&2 != 0 {
			a.resources = nil
		}
		if choice&4 != 0 {
			a.scopes = nil
		}
		left := choice&1 != 0 && full.audience == "" || choice&2 != 0 && full.resources == nil || choice&4 != 0 && full.scopes == nil
		if left { // the same as without it
			continue
		}
		if s.explains(a, r, defaults) {
			consistent = append(consistent, a)
		}
		if a.audience == full.audience && len(a.resources) == len(full.resources) {
			all = append(all, a)
		}
	}
	if len(consistent) > 0 {
		return consistent
	}
	return all
}

// explains reports whether the request leads to the line under this configuration.
func (s *side) explains(a ask, r *recorded, defaults policy.Defaults) bool {
	caller := s.policy.Named(r.caller)
	o := s.token(caller, a)
	if !r.allowed() && !r.tooMuch {
		filled := fill(a, defaults)
		return !o.allowed && r.describes(filled)
	}
	return o.allowed && r.describes(o.request) && (r.tooMuch || caller.MayReceive(o.request, r.granted))
}

// describes reports whether the line has the values of the request.
func (r *recorded) describes(req policy.Request) bool {
	var audience string
	if len(r.audiences) > 0 {
		audience = r.audiences[0]
	}
	return req.Audience == audience && slices.Equal(sorted(req.Resources), sorted(r.resources)) && slices.Equal(req.Scopes, r.scopes)
}

func (s *side) whyNotToken(caller *policy.Caller, a ask) string {
	defaults, ok := s.cfg.Clients[a.client]
	if !ok {
		return "no such client: " + a.client
	}
	req := fill(a, defaults)
	allows := func(resources, scopes []string) bool {
		_, ok := caller.Resolve(policy.Request{Client: a.client, Audience: req.Audience, Resources: resources, Scopes: scopes})
		return ok
	}
	denied := func(values []string, allowed func(value string) bool) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(values), allowed), ", ")
	}
	switch {
	case !caller.HasGrant(a.client):
		return "no grant for client " + a.client
	case !allows(nil, nil):
		return "no grant allows the audience " + req.Audience
	case !allows(req.Resources, nil):
		one := denied(req.Resources, func(value string) bool { return allows([]string{value}, nil) })
		if one == "" {
			return "no single grant allows these resources together"
		}
		return "no grant allows the resources " + one
	}
	scopes := denied(req.Scopes, func(value string) bool { return allows(req.Resources, []string{value}) })
	if scopes == "" {
		return "no single grant allows these scopes together"
	}
	return "no grant allows the scopes " + scopes
}

func (s *side) whyNotAdmin(r *recorded) string {
	if _, ok := s.cfg.Clients[r.client]; !ok && r.client != "" && r.action == policy.GetClient {
		return "no such client: " + r.client
	}
	if r.client == "" {
		return fmt.Sprintf("no grant for the action %s", r.action)
	}
	return fmt.Sprintf("no grant for the action %s on client %s", r.action, r.client)
}

// judgeVerification judges what the policy contributes to a verification: the issuers and
// the audiences. It assumes the same token and the same keys.
func judgeVerification(ref, to *side, caller *policy.Caller, r *recorded) judgement {
	issuers, ok := caller.MayVerify()
	if !ok {
		return judgement{Denied, "no grant to verify tokens"}
	}
	if r.issuer != "" {
		return to.judgeIssuer(ref, caller, r.issuer, r)
	}
	// The issuer of the token is unknown.
	var allowed, denied []judgement
	for issuer := range issuers {
		if j := to.judgeIssuer(ref, caller, issuer, r); j.Verdict == Denied {
			denied = append(denied, j)
		} else {
			allowed = append(allowed, j)
		}
	}
	switch {
	case len(allowed) == 0:
		return judgement{Denied, "no grant allows the audiences " + strings.Join(r.audiences, ", ")}
	case r.allowed(), len(denied) == 0:
		return judgement{Verdict: Allowed}
	default:
		return judgement{Depends, "the log does not name the issuer of the token"}
	}
}

func (s *side) judgeIssuer(ref *side, caller *policy.Caller, issuer string, r *recorded) judgement {
	permitted, byDefault, ok := s.mayVerify(caller, issuer)
	switch {
	case !ok:
		return judgement{Denied, "no grant to verify tokens of the issuer " + issuer}
	case len(r.audiences) > 0:
		if lost := subtract(sorted(r.audiences), permitted); len(lost) > 0 {
			return judgement{Denied, fmt.Sprintf("no grant allows the audiences %s of the issuer %s", strings.Join(lost, ", "), issuer)}
		}
		return judgement{Verdict: Allowed}
	case len(byDefault) == 0:
		return judgement{Denied, "no grant allows an audience of the issuer " + issuer}
	case r.outcome != audit.Active:
		return judgement{Verdict: Allowed}
	}
	_, before, _ := ref.mayVerify(ref.policy.Named(r.caller), issuer)
	if lost := subtract(before, set{values: byDefault}); len(lost) > 0 {
		return judgement{Depends, fmt.Sprintf("tokens for %s are rejected, and the log does not name the audience of the token", strings.Join(lost, ", "))}
	}
	return judgement{Verdict: Allowed}
}

// use is a grant that allows a recorded request, with the values of the request.
type use struct {
	grant
	audiences, resources, scopes []string
}

// uses returns the grants that allow a recorded request: for each request that may have led
// to the line the first one. With no other grants, the configuration allows the same.
func (s *side) uses(caller string, r *recorded) []use {
	switch r.kind {
	case Get:
		return s.tokenUses(caller, r)
	case Verify:
		return s.verifyUses(caller, r)
	default:
		return s.adminUses(caller, r)
	}
}

// first returns the first grant of the caller that matches.
func (s *side) first(caller string, matches func(g *grant) bool) (uses []use) {
	for _, g := range s.grantsOf(caller) {
		if matches(&g) {
			return []use{{grant: g}}
		}
	}
	return nil
}

func (s *side) tokenUses(caller string, r *recorded) (uses []use) {
	for _, a := range s.readings(r) {
		o := s.token(s.policy.Named(caller), a)
		granted := o.request.Scopes
		if slices.Equal(granted, r.scopes) && r.allowed() {
			granted = r.granted
		}
		for _, u := range s.first(caller, func(g *grant) bool {
			return o.allowed && g.alone.MayReceive(o.request, granted)
		}) {
			u.audiences, u.resources, u.scopes = []string{o.request.Audience}, o.request.Resources, slices.Concat(o.request.Scopes, granted)
			uses = append(uses, u)
		}
	}
	return uses
}

func (s *side) verifyUses(caller string, r *recorded) (uses []use) {
	audiences := r.audiences
	if len(audiences) == 0 {
		_, audiences, _ = s.mayVerify(s.policy.Named(caller), r.issuer)
	}
	for _, audience := range audiences {
		for _, u := range s.first(caller, func(g *grant) bool {
			permitted, _, ok := s.mayVerify(g.alone, r.issuer)
			return ok && permitted.has(audience)
		}) {
			u.audiences = []string{audience}
			uses = append(uses, u)
		}
	}
	return uses
}

func (s *side) adminUses(caller string, r *recorded) (uses []use) {
	if r.action != policy.ListClients {
		return s.first(caller, func(g *grant) bool { return s.mayDo(g.alone, r.action, r.client) })
	}
	for _, client := range append(union(s.cfg.Clients), "") { // the response has all that the caller may list
		uses = append(uses, s.first(caller, func(g *grant) bool { return g.alone.MayDo(r.action, client) })...)
	}
	return uses
}
