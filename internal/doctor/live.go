package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
)

// clockError is the difference of clocks from which on requests fail: issuers and the
// broker accept 30 s by default.
const clockError = 30 * time.Second

// live adds the checks that use secrets and the network.
func (d *doctor) live() {
	var err error
	d.probe, err = app.OpenProbe(d.config, app.Options{Logger: logger(), Transport: d.Transport})
	if err != nil {
		d.add("configuration", nil, func(_ context.Context, r *result) {
			r.fail("config-unusable", err, "Correct the configuration: the broker does not start until then.", "")
		})
		return
	}
	for _, unusable := range d.probe.Unusable {
		d.add(unusable.Part, unusable.Keys, func(_ context.Context, r *result) {
			if errors.Is(unusable.Err, boltstore.ErrInUse) {
				r.report(Note, "store-in-use", "the file of the store is open in another process, so it was not tried", "Nothing, if that is the broker with this configuration; else stop it, or name another file.")
				return
			}
			r.report(Error, "config-unusable", unusable.Err.Error(), "Correct the file or the setting that it names: the broker does not start until then.")
		})
	}
	if d.config.Listen.Encrypted() {
		d.add("listen.tls", []any{"listen", "tls"}, func(ctx context.Context, r *result) { r.listener(ctx) })
	}
	d.store()
	for client, doubt := range d.probe.DoubtfulSecrets() {
		d.add("clients."+client+": secret", []any{"clients", client, "secret"}, func(_ context.Context, r *result) {
			r.report(Warning, "secret-doubtful", doubt, "Write the secret into the file again, without those bytes, unless they belong to it.")
		})
	}
	for _, client := range d.probe.Clients() {
		d.client(client)
	}
	for _, i := range d.probe.Issuers() {
		d.issuer(i)
	}
	d.clocks()
}

func (d *doctor) client(name string) {
	cfg, at := d.config.Clients[name], []any{"clients", name}
	d.add("clients."+name+": token endpoint", append(slices.Clone(at), "issuer"), func(ctx context.Context, r *result) {
		if cfg.TokenURL != "" {
			r.pass(discovery.Printable(cfg.TokenURL) + " (as configured; --mint tries it)")
			return
		}
		endpoint, err := r.probe.TokenEndpoint(ctx, name)
		r.fail(fleet.IdPDown, err, "Check issuer, and the network and proxies on the way to the IdP, or set token_url.", endpoint)
	})
	if d.probe.HasSource(name) {
		d.add("clients."+name+": secret", append(slices.Clone(at), "secret"), func(ctx context.Context, r *result) {
			found, err := r.probe.ReadSource(ctx, name)
			r.fail(fleet.SourceFailing, err, "Run the command by hand as the user of the broker, or check Vault and the broker's login there.", found)
		})
	}
	if d.Mint && d.probe.HasClient(name) {
		d.add("clients."+name+": token", at, func(ctx context.Context, r *result) { r.mint(ctx, name) })
	}
}

// mint requests a token, and then one with the further scopes that roles allow.
func (r *result) mint(ctx context.Context, name string) {
	if onlyIntrospects(r.config, name) {
		r.pass("not tried: the client is used for introspection only, and no role names it under get")
		return
	}
	if e := r.config.Clients[name].Exchange; e != nil && e.Prove == "next_exchange" {
		r.pass("not tried: the client gets no tokens of its own, only for users (exchange.prove)")
		return
	}
	minted, fetched, err := r.probe.Token(ctx, name, nil)
	if err != nil {
		r.report(Error, idOfFetch(err), err.Error(), "Compare the client's secret, auth, scopes and audience with its registration at the IdP. Do not repeat a refused secret often: the IdP may lock the client.")
		return
	}
	held := ""
	if !fetched {
		held = "; the fleet has this token, so the IdP was not called"
	}
	r.pass(fmt.Sprintf("%s, lives %v, scopes %v%s", minted.Type, minted.Lifetime().Round(time.Second), minted.Scopes, held))
	defaults := r.config.Clients[name].Scopes
	wanted := slices.Concat(defaults, r.scopesOfRoles(name))
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if len(wanted) == len(defaults) {
		return
	}
	const action = "Register the scopes for the client at the IdP, or remove them from the roles."
	minted, _, err = r.probe.Token(ctx, name, wanted)
	if err != nil {
		r.report(Warning, "role-scope-refused", "the IdP issues no token with the scopes that roles allow, "+list(wanted)+": "+err.Error(), action)
		return
	}
	missing := slices.DeleteFunc(wanted, func(s string) bool { return slices.Contains(minted.Scopes, s) })
	if len(missing) > 0 && len(minted.Scopes) > 0 {
		r.report(Warning, "role-scope-refused", "the IdP does not grant scopes that roles allow: "+list(missing), action)
	}
}

// idOfFetch returns the ID of the finding for a failed request for a token.
func idOfFetch(err error) string {
	switch idp.ClassOf(err) {
	case idp.CredentialRefused:
		return fleet.SecretInvalid
	case idp.Throttled:
		return fleet.IdPThrottles
	case idp.RequestRefused, idp.Misconfigured:
		return fleet.IdPRefuses
	default:
		return fleet.IdPDown
	}
}

// onlyIntrospects reports whether the client is configured for introspection and no role
// grants its tokens by name. The IdP would refuse to issue one, and might count that
// against the client.
func onlyIntrospects(c *config.Config, client string) bool {
	for _, role := range c.Roles {
		if slices.ContainsFunc(role.Get, func(grant config.GetGrant) bool { return grant.Client == client }) {
			return false
		}
	}
	return slices.ContainsFunc(c.Issuers, func(issuer config.Issuer) bool {
		return issuer.Introspection != nil && issuer.Introspection.Client == client
	})
}

func (d *doctor) issuer(i int) {
	name, at := d.config.Issuers[i].Issuer, []any{"issuers", i}
	d.add("issuers "+name+": keys", at, func(ctx context.Context, r *result) {
		usable, err := r.probe.Keys(ctx, name)
		r.fail(fleet.KeysUnusable, err, "Check issuer, jwks_url and the network on the way to it: its tokens cannot be verified until then.", fmt.Sprintf("%d usable", usable))
	})
	if d.config.Issuers[i].Introspection == nil {
		return
	}
	d.add("issuers "+name+": introspection", append(at, "introspection"), func(ctx context.Context, r *result) {
		if !r.probe.HasIntrospection(name) {
			r.report(Note, "introspection-unknown", "not tried, because its client cannot be used", "Correct the client.")
			return
		}
		err := r.probe.Introspection(ctx, name)
		r.fail("introspection-unusable", err, "Check the introspection endpoint, and whether the client may use it.", "responds, and reports a made-up token as not active")
	})
}

// clocks compares the clock of this machine with that of each IdP, once for each host.
func (d *doctor) clocks() {
	seen := map[app.Place]bool{}
	add := func(place app.Place, direct bool, keys ...any) {
		u, err := url.Parse(place.URL)
		if err != nil { // an issuer that is not a URL
			return
		}
		host := app.Place{URL: u.Host, AllowPrivate: place.AllowPrivate, CA: place.CA}
		if u.Host == "" || seen[host] {
			return
		}
		seen[host] = true
		d.add("clock of "+u.Host, keys, func(ctx context.Context, r *result) { r.idpClock(ctx, place, direct) })
	}
	for _, name := range d.probe.Clients() {
		c := d.config.Clients[name]
		direct := c.TokenURL != "" && !idp.AuthMethod(c.Auth).Mutual()
		add(app.Place{URL: cmp.Or(c.TokenURL, c.Issuer), AllowPrivate: c.AllowPrivate, CA: c.CA()}, direct, "clients", name)
	}
	for _, i := range d.probe.Issuers() {
		if c := &d.config.Issuers[i]; c.JWKSFile == "" {
			add(app.Place{URL: cmp.Or(c.JWKSURL, c.Issuer), AllowPrivate: c.AllowPrivate, CA: c.CA()}, false, "issuers", i)
		}
	}
}

// idpClock compares the clock with that of a server. If direct is set, no other check
// reaches it without --mint.
func (r *result) idpClock(ctx context.Context, place app.Place, direct bool) {
	ahead, exact, err := r.probe.Clock(ctx, place, r.Now)
	switch {
	case err != nil && direct && !r.Mint && !errors.Is(err, app.ErrNoDate):
		r.report(Warning, fleet.IdPDown, "the server does not answer: "+withoutURL(err), "Check token_url, and the network and proxies on the way to it.")
	case err != nil:
		r.report(Note, "clock-unknown", "its clock could not be compared: "+withoutURL(err), "Make sure that NTP runs on this machine.")
	default:
		r.clock("the server", ahead, exact)
	}
}

// withoutURL drops the URL, which may have a secret in its query.
func withoutURL(err error) string {
	if failure, ok := errors.AsType[*url.Error](err); ok {
		err = failure.Err
	}
	return err.Error()
}

// clock judges a difference of clocks.
func (r *result) clock(server string, ahead, exact time.Duration) {
	off, severity := ahead.Abs()-exact, Warning
	if off > clockError {
		severity = Error
	}
	if off <= fleet.ClockLimit {
		r.pass("agrees within " + (ahead.Abs() + exact).Round(time.Second/10).String())
		return
	}
	direction := "ahead of"
	if ahead < 0 {
		direction = "behind"
	}
	r.report(severity, fleet.ClockDiffers, fmt.Sprintf("the clock of this machine is %v %s that of %s", ahead.Abs().Round(time.Second), direction, server),
		"Correct the clock, and check NTP on this machine and on the server. Tokens expire early or late until then, and assertions are refused.")
}
