package config

import (
	"net"
	"strconv"
	"strings"
)

func checkStore(c *Store, found *findings) {
	const store = "store"
	kinds := []string{"memory", "bolt", "redis"}
	given := ""
	for _, kind := range kinds {
		path := join(store, kind)
		switch {
		case !found.given(path):
		case given != "":
			found.addf(path, "contradicts %s in line %d: state is kept in one place, remove one of them", given, found.line(given))
		default:
			given = path
		}
	}
	if given == "" && found.given(store) {
		found.addf(store, "needs a kind of store: give %s", oneOf(kinds))
	}
	checkSealing(c, given, found)
	if c.Redis != nil {
		checkRedis(c.Redis, join(store, "redis"), found)
	}
}

func checkSealing(c *Store, kind string, found *findings) {
	const keys = "store.sealing_keys"
	switch {
	case kind == "store.memory" && found.given(keys):
		found.addf(keys, "the memory store does not seal values: remove it, or use bolt or redis")
	case (kind == "store.bolt" || kind == "store.redis") && !found.given(keys):
		found.addf("store", "sealing_keys is missing: make a ring of keys with \"broker ring new > ring.json\" and name it with sealing_keys: file:ring.json; all replicas need the same")
	case found.given(keys) && c.SealingKeys.Kind() == "env":
		found.addf(keys, "the ring of sealing keys is read from a file only, so that it can change while the broker runs: give file:PATH")
	}
}

func checkRedis(c *RedisStore, path string, found *findings) {
	for i, address := range c.Addresses {
		if _, port, err := net.SplitHostPort(address); err != nil || !isPort(port) {
			found.addf(item(join(path, "addresses"), i), "expected HOST:PORT with a numeric port, such as redis.example.com:6379")
		}
	}
	sentinel, cluster := join(path, "sentinel_master"), join(path, "cluster")
	switch {
	case c.Cluster && c.SentinelMaster != "":
		found.addf(sentinel, "contradicts cluster: true in line %d: the addresses belong to a Cluster or to sentinels, remove one of the two", found.line(cluster))
	case !c.Cluster && c.SentinelMaster == "" && len(c.Addresses) > 1:
		found.addf(join(path, "addresses"), "more than one address: give cluster: true or sentinel_master: NAME")
	}
	if c.Cluster && c.DB != 0 {
		found.addf(join(path, "db"), "a Cluster has only database 0: remove it")
	}
	for _, key := range []string{"sentinel_username", "sentinel_password"} {
		if found.given(join(path, key)) && c.SentinelMaster == "" {
			found.addf(join(path, key), "is for sentinels: give sentinel_master as well, or remove it")
		}
	}
	if found.given(join(path, "username")) && !found.given(join(path, "password")) {
		found.addf(join(path, "username"), "an ACL user needs a password: give password: file:PATH")
	}
	if strings.ContainsAny(c.Prefix, "{}*?[]\\ ") {
		found.addf(join(path, "prefix"), "must not contain braces, spaces or pattern characters: use letters, digits and colons, such as tb1:")
	}
	if c.TLS != nil && (c.TLS.Cert == "") != (c.TLS.Key == "") {
		found.addf(join(path, "tls"), "a client certificate needs both cert and key: give both, or neither")
	}
}

func isPort(text string) bool {
	_, err := strconv.ParseUint(text, 10, 16)
	return err == nil
}
