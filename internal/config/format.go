package config

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/gatewayconf"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// fileFormat describes the configuration file beyond the tags of [Config].
func fileFormat() yamlconf.Format {
	return yamlconf.Format{
		Root:  "a mapping of sections such as clients: and issuers:",
		Empty: "configure clients, issuers or both",
		Types: map[reflect.Type]func(n yamlconf.Node, v reflect.Value){
			reflect.TypeFor[ClaimPath]():    decodeClaimPath,
			reflect.TypeFor[secret.Ref]():   decodeReference,
			reflect.TypeFor[ClientSecret](): decodeClientSecret,
			reflect.TypeFor[Listener]():     decodeListener,
			reflect.TypeFor[HTTPListener](): decodeListener,
		},
		Values:   valuesOf,
		Replaced: replacement,
	}
}

// valuesOf returns the values of a key with a list from other code, named in its
// jsonschema tag: so the list cannot differ from that code.
func valuesOf(list string) []string {
	switch list {
	case "actions":
		return append(yamlconf.Texts(policy.Actions()), policy.Any)
	case "algorithms":
		return jose.Algorithms()
	case "assertion_algorithms":
		return jose.SigningAlgorithms()
	case "assertion_types":
		return idp.AssertionTypes()
	case "auth_methods":
		return yamlconf.Texts(idp.AuthMethods())
	case "issuer_presets":
		return slices.Sorted(maps.Keys(issuerPresets()))
	case "made_algorithms":
		return jose.MadeAlgorithms()
	case "presets":
		return slices.Sorted(maps.Keys(presets()))
	case "subject_types":
		return []string{"access_token", "id_token"}
	case "undecided":
		return slices.Sorted(maps.Keys(gatewayconf.Undecided()))
	case "vault_auths":
		return yamlconf.Texts(secretsource.VaultAuths())
	case "verifications":
		return slices.Sorted(maps.Keys(Verifications()))
	default:
		panic("a jsonschema tag names the list " + list + ", which does not exist")
	}
}

// replacement returns the key that replaced one of an earlier version, or "".
func replacement(path, key string) string {
	switch yamlconf.Join(path, key) {
	case "gateways.url":
		return "listen.http.url"
	case "server.audience":
		return "server.caller_audience"
	}
	member, ok := strings.CutPrefix(key, "assertion_")
	if !ok || !strings.HasPrefix(path, "clients.") {
		return ""
	}
	for f := range reflect.TypeFor[Assertion]().Fields() {
		if f.Tag.Get("yaml") == member {
			return "assertion." + member
		}
	}
	return ""
}

// claimConstraints are the constraints of a ClaimPath.
const claimConstraints = "required,minItems=1,maxItems=4,minLength=1,maxLength=256"

// decodeClaimPath decodes the name of a claim, or a list of names.
func decodeClaimPath(n yamlconf.Node, v reflect.Value) {
	if n.IsList() {
		if names, ok := n.Texts(claimConstraints); ok {
			v.Set(reflect.ValueOf(ClaimPath(names)))
		}
		return
	}
	if name, ok := n.Text("the name of a claim, or a list of names such as [realm_access, roles]", claimConstraints); ok {
		v.Set(reflect.ValueOf(ClaimPath{name}))
	}
}

func decodeReference(n yamlconf.Node, v reflect.Value) {
	value, ok := n.Text("file:PATH or env:NAME", "")
	if !ok {
		return
	}
	ref, err := secret.ParseRef(value)
	if err == nil && ref.Managed() && !mayBeManaged(n.Path) {
		err = errors.New("managed is for the secrets of clients only: give file:PATH or env:NAME")
	}
	if err != nil {
		n.Addf("%v", err)
		return
	}
	v.Set(reflect.ValueOf(ref))
}

// mayBeManaged reports whether the path is that of a client's secret.
func mayBeManaged(path string) bool {
	return strings.HasPrefix(path, "clients.") && strings.HasSuffix(path, ".secret")
}

// decodeListener decodes an address or a mapping. "off" means no listener.
func decodeListener(n yamlconf.Node, v reflect.Value) {
	const expected = "an address such as 127.0.0.1:8443, or {address: ..., plaintext: true}"
	if n.IsMapping() {
		n.Struct(v)
		return
	}
	switch value, ok := n.Text(expected, ""); {
	case !ok:
	case value == "":
		n.Addf("expected %s", expected)
	case value == "off":
		v.SetZero()
	default:
		v.FieldByName("Address").SetString(value)
	}
}
