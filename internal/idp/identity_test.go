package idp_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/idp"
)

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
		if (a.Key(nameA) == b.Key(nameB)) != same {
			t.Fatalf("%q %+v and %q %+v: the keys say otherwise", nameA, a, nameB, b)
		}
	})
}

// Parts that read the same one after the other are different questions.
func TestKeysKeepPartsApart(t *testing.T) {
	keys := map[idp.Key]string{}
	for name, k := range map[string]idp.Key{
		"audience":               idp.Request{Audience: "ab"}.Key("c"),
		"name and audience":      idp.Request{Audience: "b"}.Key("ca"),
		"two scopes":             idp.Request{Scopes: []string{"a", "b"}}.Key("c"),
		"two scopes, other cut":  idp.Request{Scopes: []string{"ab", ""}}.Key("c"),
		"two resources":          idp.Request{Resources: []string{"a", "b"}}.Key("c"),
		"resources, other order": idp.Request{Resources: []string{"b", "a"}}.Key("c"),
		"resource and scope":     idp.Request{Resources: []string{"a"}, Scopes: []string{"b"}}.Key("c"),
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
		got := idp.CanonicalScopes(scopes)
		if !slices.Equal(scopes, before) {
			t.Fatal("the argument was changed")
		}
		if want := slices.Compact(slices.Sorted(slices.Values(scopes))); !slices.Equal(got, want) {
			t.Fatalf("idp.CanonicalScopes(%q) = %q", scopes, got)
		}
	})
}
