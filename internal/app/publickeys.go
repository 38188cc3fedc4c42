package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// made returns the key that the broker makes for a client. The client must have one.
func (s *setup) made(config *config.Config, name string) credential.Made {
	key := config.Clients[name].Key
	url := key.URL
	if url == "" {
		url = config.Listen.PublicKeys.URL + clientkeys.Path(s.storage.MAC(), name)
	}
	return credential.Made{Algorithm: key.Algorithm, RotateEvery: key.RotateEvery, PublishBefore: key.PublishBefore, URL: url}
}

// makeKeys returns the keys that the broker makes for its clients.
func (p *parts) makeKeys() *clientkeys.Keys {
	return clientkeys.New(clientkeys.Config{
		Sets: p.broker.MadeKeys, Store: p.storage.Store, MAC: p.storage.MAC(),
		// The URL is the broker's own, and may well be in the broker's network.
		HTTP:    func(url string) *http.Client { return p.network.ClientFor(url, true) },
		PutBack: p.storage.PutBack(), Logger: p.log, Registerer: p.registerer,
	})
}

// rotator returns the rotation of secrets and keys.
func (p *parts) rotator() *rotation.Rotator {
	r := rotation.New(p.broker, p.storage.Rings)
	r.Keys = p.keys
	return r
}

// PublicKeysAddr is the address of the listener for public keys; empty if it is off.
func (a *App) PublicKeysAddr() string {
	if a.listen.keys == nil {
		return ""
	}
	return a.listen.keys.Addr().String()
}

// publicKeysServer serves the public keys of clients, and nothing else.
func (a *App) publicKeysServer() *http.Server {
	return &http.Server{
		Handler:           closeWhereFramingIsUnclear(a.parts.keys.Handler()),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
	}
}

// serveUntilStopped serves on a listener that outlives the drain of the APIs, and returns
// the function that stops it. A nil listener is off.
func serveUntilStopped(group *errgroup.Group, name string, on net.Listener, server *http.Server) (stop func()) {
	if on == nil {
		return func() {}
	}
	group.Go(func() error {
		if err := server.Serve(on); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("%s listener: %w", name, err)
		}
		return nil
	})
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), opsStopTimeout)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	}
}

// secretOf describes for operators where the credential of a client comes from.
func secretOf(client *config.Client) string {
	if client.Key != nil {
		return "made by the broker (" + client.Key.Algorithm + ")"
	}
	return client.Secret.String()
}
