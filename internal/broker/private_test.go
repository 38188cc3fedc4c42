package broker_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// valued records the values that were put into a store.
type valued struct {
	store.Store

	mu     sync.Mutex
	values [][]byte
}

func (v *valued) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, put := range change.Puts {
		v.values = append(v.values, bytes.Clone(put.Value))
	}
	return v.Store.Apply(ctx, change)
}

func (v *valued) has(text string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Contains(bytes.Join(v.values, nil), []byte(text))
}

// Only a store that other replicas use, or that outlives the process, gets the tokens.
func TestTokensAreStored(t *testing.T) {
	for name, private := range map[string]bool{"shared": false, "private": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				values := &valued{Store: store.NewMemory(store.MemoryConfig{})}
				f := startAs(t, nil, func(cfg *broker.Config) { cfg.Store, cfg.Private = values, private })
				for _, ask := range []broker.Ask{orders(), {Client: "orders", Scopes: []string{"read"}}} {
					first := f.mustGet(t, ask)
					if stored := values.has(first.Token.Value.Reveal()); stored == private {
						t.Errorf("%v: the token is stored: %v", ask.Scopes, stored)
					}
					if again := f.mustGet(t, ask); again.Token != first.Token {
						t.Errorf("%v: the token is not held", ask.Scopes)
					}
				}
				if len(values.values) == 0 {
					t.Error("nothing was stored: the proof of the secret is missing")
				}
			})
		})
	}
}

// A private store has no tokens, so a client with another secret takes those of the same
// requests over: its IdP is not asked again for each of them.
func TestApply_keepsTokensOfTheSameRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t)
		narrow := broker.Ask{Client: "orders", Scopes: []string{"read"}}
		first, second := f.mustGet(t, orders()), f.mustGet(t, narrow)
		path := t.TempDir() + "/another"
		testkit.WriteFile(t, path, "right")
		ref, err := secret.ParseRef("file:" + path)
		if err != nil {
			t.Fatal(err)
		}
		changed := f.config
		if changed.Secret, err = secret.Open(ref); err != nil {
			t.Fatal(err)
		}
		if err := f.Apply(broker.Setup{Clients: []broker.ClientConfig{changed}}); err != nil {
			t.Fatal(err)
		}
		if again := f.mustGet(t, orders()); again.Token != first.Token || again.Origin != broker.OriginMemory {
			t.Error("the client's own token is gone")
		}
		if again := f.mustGet(t, narrow); again.Token != second.Token || again.Origin != broker.OriginMemory {
			t.Error("the token for another request is gone")
		}
		if fetched := f.fetches(); fetched != 2 {
			t.Errorf("%d fetches", fetched)
		}
		if err := f.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		if again := f.mustGet(t, narrow); again.Token.SHA256 == second.Token.SHA256 {
			t.Error("a token that was taken over survives a purge")
		}
	})
}
