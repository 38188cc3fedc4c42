package config

import (
	"net"
	"strconv"
	"strings"

	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

func checkStore(c *Store, findings *yamlconf.Findings) {
	const store = "store"
	kinds := []string{"memory", "bolt", "redis"}
	given := ""
	for _, kind := range kinds {
		path := yamlconf.Join(store, kind)
		switch {
		case !findings.Given(path):
		case given != "":
			findings.Addf(path, "contradicts %s in line %d: state is kept in one place, remove one of them", given, findings.Line(given))
		default:
			given = path
		}
	}
	if given == "" && findings.Given(store) {
		findings.Addf(store, "needs a kind of store: give %s", yamlconf.OneOf(kinds))
	}
	checkSealing(c, given, findings)
	if c.Redis != nil {
		checkRedis(c.Redis, yamlconf.Join(store, "redis"), findings)
	}
}

func checkSealing(c *Store, kind string, findings *yamlconf.Findings) {
	const keys = "store.sealing_keys"
	switch {
	case kind == "store.memory" && findings.Given(keys):
		findings.Addf(keys, "the memory store does not seal values: remove it, or use bolt or redis")
	case (kind == "store.bolt" || kind == "store.redis") && !findings.Given(keys):
		findings.Addf("store", "sealing_keys is missing: make a ring of keys with \"broker ring new > ring.json\" and name it with sealing_keys: file:ring.json; all replicas need the same")
	case findings.Given(keys) && c.SealingKeys.Kind() == "env":
		findings.Addf(keys, "the ring of sealing keys is read from a file only, so that it can change while the broker runs: give file:PATH")
	}
}

func checkRedis(c *RedisStore, path string, findings *yamlconf.Findings) {
	for i, address := range c.Addresses {
		if _, port, err := net.SplitHostPort(address); err != nil || !isPort(port) {
			findings.Addf(yamlconf.Item(yamlconf.Join(path, "addresses"), i), "expected HOST:PORT with a numeric port, such as redis.example.com:6379")
		}
	}
	sentinel, cluster := yamlconf.Join(path, "sentinel_master"), yamlconf.Join(path, "cluster")
	switch {
	case c.Cluster && c.SentinelMaster != "":
		findings.Addf(sentinel, "contradicts cluster: true in line %d: the addresses belong to a Cluster or to sentinels, remove one of the two", findings.Line(cluster))
	case !c.Cluster && c.SentinelMaster == "" && len(c.Addresses) > 1:
		findings.Addf(yamlconf.Join(path, "addresses"), "more than one address: give cluster: true or sentinel_master: NAME")
	}
	if c.Cluster && c.DB != 0 {
		findings.Addf(yamlconf.Join(path, "db"), "a Cluster has only database 0: remove it")
	}
	for _, key := range []string{"sentinel_username", "sentinel_password"} {
		if findings.Given(yamlconf.Join(path, key)) && c.SentinelMaster == "" {
			findings.Addf(yamlconf.Join(path, key), "is for sentinels: give sentinel_master as well, or remove it")
		}
	}
	if findings.Given(yamlconf.Join(path, "username")) && !findings.Given(yamlconf.Join(path, "password")) {
		findings.Addf(yamlconf.Join(path, "username"), "an ACL user needs a password: give password: file:PATH")
	}
	if strings.ContainsAny(c.Prefix, "{}*?[]\\ ") {
		findings.Addf(yamlconf.Join(path, "prefix"), "must not contain braces, spaces or pattern characters: use letters, digits and colons, such as tb1:")
	}
	if c.TLS != nil && (c.TLS.Cert == "") != (c.TLS.Key == "") {
		findings.Addf(yamlconf.Join(path, "tls"), "a client certificate needs both cert and key: give both, or neither")
	}
}

func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}
