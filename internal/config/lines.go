package config

import "github.com/cezzis/tokenbroker/internal/yamlconf"

// Line returns the line of a key or of a list item, and 0 if the file does not have it.
// keys lead to it: a string for a key, and an int for the index of an item. Verify grants
// have their index in PolicyConfig, and issuers that in Issuers.
func (c *Config) Line(keys ...any) int {
	path := ""
	for i, key := range keys {
		switch key := key.(type) {
		case string:
			path = yamlconf.Join(path, key)
		case int:
			if i == 1 && keys[0] == "issuers" {
				key = c.issuerItems[key]
			}
			if i == 3 && keys[0] == "roles" && keys[2] == "verify" {
				key = c.verifyItems[keys[1].(string)][key] //nolint:forcetypeassert // the name of a role
			}
			path = yamlconf.Item(path, key)
		}
	}
	return c.findings.Line(path)
}

// LineNear is Line, or the line of the closest key above that the file has.
func (c *Config) LineNear(keys ...any) int {
	for n := len(keys); n > 0; n-- {
		if line := c.Line(keys[:n]...); line > 0 {
			return line
		}
	}
	return 1
}

// Bound returns the callers to which listeners are bound, by the key that binds them.
func (c *Config) Bound() map[string]string {
	bound := map[string]string{"listen.grpc.caller": c.Listen.GRPC.Caller, "listen.http.caller": c.Listen.HTTP.Caller}
	if c.Listen.Unix != nil {
		bound["listen.unix.caller"] = c.Listen.Unix.Caller
	}
	if unix := c.Listen.UnixHTTP(); unix != nil {
		bound["listen.http_unix.caller"] = unix.Caller
	}
	for key, caller := range bound {
		if caller == "" {
			delete(bound, key)
		}
	}
	return bound
}
