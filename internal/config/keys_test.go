package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/config"
)

// keyed is a file with a client whose key the broker makes; the keys of the mapping begin
// in line 7.
func keyed(rest string, keys ...string) string {
	text := "clients:\n  orders-api:\n    issuer: https://login.example.com\n    client_id: abc\n    auth: private_key_jwt\n    key:\n"
	for _, key := range append([]string{"algorithm: ES256"}, keys...) {
		text += "      " + key + "\n"
	}
	return text + rest
}

const (
	durable = "store: {bolt: state.db, sealing_keys: file:ring.json}\n"
	listens = "listen: {public_keys: {address: '0.0.0.0:8444', url: 'https://keys.example.com'}}\n"
)

func TestKey(t *testing.T) {
	parsed, err := config.Parse("broker.yaml", []byte(keyed(durable+listens)))
	if err != nil {
		t.Fatal(err)
	}
	client := parsed.Clients["orders-api"]
	if key := client.Key; key == nil || key.RotateEvery != 720*time.Hour || key.PublishBefore != 24*time.Hour || !client.Managed() || parsed.Managed() != "orders-api" {
		t.Errorf("%+v", key)
	}
	if _, err := config.Parse("broker.yaml", []byte(keyed(durable, "url: https://static.example.com/orders.json"))); err != nil {
		t.Errorf("static hosting: %v", err)
	}
}

func TestKey_invalid(t *testing.T) {
	for name, tt := range map[string]struct{ file, want string }{
		"memory store":      {keyed(listens), "the memory store loses it at exit"},
		"not published":     {keyed(durable), "nothing publishes the public keys"},
		"other auth":        {strings.Replace(keyed(durable+listens), "private_key_jwt", "client_secret_basic", 1), "the broker makes keys for auth: private_key_jwt only"},
		"with a secret":     {keyed("    secret: file:key.pem\n" + durable + listens), "contradicts key in line 6"},
		"with a kid":        {keyed("    assertion: {kid: k1}\n" + durable + listens), "assertion.kid: follows from the key"},
		"algorithm":         {strings.Replace(keyed(durable+listens), "ES256", "HS256", 1), "expected ES256"},
		"too often":         {keyed(durable+listens, "rotate_every: 30h"), "at least twice publish_before"},
		"published briefly": {keyed(durable+listens, "publish_before: 1s"), "publish_before: must be from 1m"},
		"plain http":        {keyed(durable, "url: http://keys.example.com/a"), "key.url: "},
		"url with a path":   {keyed(durable + strings.Replace(listens, "example.com'", "example.com/x'", 1)), "listen.public_keys.url: expected https://HOST"},
		"same address":      {keyed(durable + strings.Replace(listens, "8444", "9090", 1)), "the same address as listen.ops"},
		"no port":           {keyed(durable + strings.Replace(listens, ":8444", "", 1)), "listen.public_keys.address: expected HOST:PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := config.Parse("broker.yaml", []byte(tt.file)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
