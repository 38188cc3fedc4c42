package config

import (
	"time"

	"github.com/cezzis/tokenbroker/internal/address"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/urlcheck"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Key defines the private key that the broker makes for a client.
type Key struct {
	// The signature algorithm, and so the kind of the key.
	Algorithm string `yaml:"algorithm" jsonschema:"default=ES256,values=made_algorithms"`
	// How long a key is in use before the next one replaces it, 1h to 8760h and at least twice
	// publish_before.
	RotateEvery time.Duration `yaml:"rotate_every" jsonschema:"default=720h"`
	// How long a key is published before its first use, 1m to 720h: longer than the IdP caches the
	// keys. After its replacement a key stays a fallback for the same time.
	PublishBefore time.Duration `yaml:"publish_before" jsonschema:"default=24h"`
	// The URL at which the IdP reads the public keys, if another server publishes the document that
	// "broker key publish" writes. Absent: a URL below that of listen.public_keys.
	URL string `yaml:"url" jsonschema:"minLength=1,maxLength=512"`
}

// PublicKeys defines the listener for the public keys of clients. It serves nothing else.
type PublicKeys struct {
	// HOST:PORT, in plain HTTP: the document is public, and a proxy adds TLS.
	Address string `yaml:"address" jsonschema:"required,minLength=1"`
	// The URL, without a path, at which IdPs reach the listener.
	URL string `yaml:"url" jsonschema:"required,minLength=1,maxLength=512"`
}

func checkPublicKeys(c *Config, findings *yamlconf.Findings) {
	const at = "listen.public_keys"
	if c.Listen.PublicKeys == nil {
		return
	}
	open := Listener{Address: c.Listen.PublicKeys.Address, Plaintext: true}
	checkListener(open, at+".address", false, findings)
	for path, other := range map[string]Listener{"listen.grpc": c.Listen.GRPC, "listen.http": c.Listen.HTTP.Listener, "listen.ops": c.Listen.Ops} {
		if address.Collide(other.Address, open.Address) {
			findings.Addf(at+".address", "the same address as %s: public documents have a listener of their own", path)
		}
	}
	if url := c.Listen.PublicKeys.URL; url != "" && !isOrigin(url) {
		findings.Addf(at+".url", "expected https://HOST or https://HOST:PORT without a path")
	}
}

// checkKey checks the key that the broker makes for a client.
func checkKey(c *Config, client *Client, path string, findings *yamlconf.Findings) {
	at := yamlconf.Join(path, "key")
	if client.Key == nil {
		return
	}
	if client.Auth != string(idp.PrivateKeyJWT) {
		findings.Addf(at, "the broker makes keys for auth: %s only: remove it, or change auth", idp.PrivateKeyJWT)
	}
	if secret := yamlconf.Join(path, "secret"); findings.Given(secret) {
		findings.Addf(secret, "contradicts key in line %d: the broker makes the key, or you give one: remove one of the two", findings.Line(at))
	}
	for _, name := range []string{"algorithm", "kid", "certificate"} {
		if given := yamlconf.Join(yamlconf.Join(path, "assertion"), name); findings.Given(given) {
			findings.Addf(given, "follows from the key that the broker makes: remove it; key.algorithm chooses the algorithm")
		}
	}
	if c.Store.Bolt == "" && c.Store.Redis == nil {
		findings.Addf(at, "the key is kept in the store, and the memory store loses it at exit: give store.bolt or store.redis, or the key as secret: file:PATH")
	}
	if client.Key.URL == "" && c.Listen.PublicKeys == nil {
		findings.Addf(at, "nothing publishes the public keys, which the IdP must read: give listen.public_keys, or key.url if another server publishes them")
	}
	urlcheck.Endpoint(yamlconf.Join(at, "url"), client.Key.URL, false, true, findings)
	checkKeyTimes(client.Key, at, findings)
}

func checkKeyTimes(key *Key, at string, findings *yamlconf.Findings) {
	findings.Within(yamlconf.Join(at, "publish_before"), key.PublishBefore, time.Minute, 720*time.Hour)
	findings.Within(yamlconf.Join(at, "rotate_every"), key.RotateEvery, time.Hour, 8760*time.Hour)
	if key.RotateEvery < 2*key.PublishBefore {
		findings.Addf(at, "rotate_every must be at least twice publish_before, so that the previous key can be retired before the next one is published")
	}
}
