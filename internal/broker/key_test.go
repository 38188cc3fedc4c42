package broker

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// Entries is how many places for tokens are held besides the clients' own.
func (b *Broker) Entries() int { return b.entries.count() }

func TestKeysOfDifferentRequestsDiffer(t *testing.T) {
	part := rapid.StringOfN(rapid.RuneFrom([]rune("ab\x00\x01")), 0, 3, -1)
	question := rapid.Custom(func(t *rapid.T) idp.Request {
		return idp.Request{
			Audience:  part.Draw(t, "audience"),
			Resources: rapid.SliceOfN(part, 0, 3).Draw(t, "resources"),
			Scopes:    rapid.SliceOfN(part, 0, 3).Draw(t, "scopes"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		nameA, nameB := part.Draw(t, "client"), part.Draw(t, "other client")
		a, b := question.Draw(t, "question"), question.Draw(t, "other question")
		same := nameA == nameB && a.Audience == b.Audience && slices.Equal(a.Resources, b.Resources) && slices.Equal(a.Scopes, b.Scopes)
		if (keyOf(nameA, a) == keyOf(nameB, b)) != same {
			t.Fatalf("%q %+v and %q %+v: the keys say otherwise", nameA, a, nameB, b)
		}
	})
}

// Parts that read the same one after the other are different questions.
func TestKeysKeepPartsApart(t *testing.T) {
	keys := map[key]string{}
	for name, k := range map[string]key{
		"audience":               keyOf("c", idp.Request{Audience: "ab"}),
		"name and audience":      keyOf("ca", idp.Request{Audience: "b"}),
		"two scopes":             keyOf("c", idp.Request{Scopes: []string{"a", "b"}}),
		"two scopes, other cut":  keyOf("c", idp.Request{Scopes: []string{"ab", ""}}),
		"two resources":          keyOf("c", idp.Request{Resources: []string{"a", "b"}}),
		"resources, other order": keyOf("c", idp.Request{Resources: []string{"b", "a"}}),
		"resource and scope":     keyOf("c", idp.Request{Resources: []string{"a"}, Scopes: []string{"b"}}),
	} {
		if other, taken := keys[k]; taken {
			t.Errorf("%q and %q have the same key", name, other)
		}
		keys[k] = name
	}
}

func TestCanonicalScopes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scopes := rapid.SliceOf(rapid.StringMatching(`[a-c]{1,2}`)).Draw(t, "scopes")
		before := slices.Clone(scopes)
		got := canonicalScopes(scopes)
		if !slices.Equal(scopes, before) {
			t.Fatal("the argument was changed")
		}
		if want := slices.Compact(slices.Sorted(slices.Values(scopes))); !slices.Equal(got, want) {
			t.Fatalf("canonicalScopes(%q) = %q", scopes, got)
		}
	})
}
