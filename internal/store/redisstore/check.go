package redisstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisinfo"
)

// ACLExample is the line of a Redis ACL file with the minimum permissions of a Redis
// store. In a Cluster it needs ACLCluster as well, and with ACLConfirm it can see how
// Redis keeps its data.
const ACLExample = "user tokenbroker on >PASSWORD resetchannels ~tb1:* &tb1:* +ping +get +pttl +set +del +pexpire +eval +evalsha +publish +subscribe"

// ACLCluster has the permissions that a Redis Cluster needs in addition to ACLExample.
const ACLCluster = "+cluster|slots +asking"

// ACLConfirm lets Check and Confirm see how Redis keeps its data. From Redis 7.2 on,
// add +waitaof, which older versions do not know.
const ACLConfirm = "+info +wait"

// sentinelUser stands for the sentinels' user in errors.
const sentinelUser = "the sentinels' user"

// checkTimeout is the maximum duration of Check.
const checkTimeout = 5 * time.Second

// luaRights tries each command that a Redis store uses, on one key that is gone
// afterwards, and returns the refused ones by name and reason.
//
//nolint:dupword // Lua ends its blocks so
const luaRights = `
local refused = {}
local function try(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    table.insert(refused, {command, answer.err})
  end
end
try('SET', KEYS[1], '1', 'PX', '1000')
try('GET', KEYS[1])
try('PTTL', KEYS[1])
try('PEXPIRE', KEYS[1], '1000')
try('DEL', KEYS[1])
try('PUBLISH', ARGV[1], '')
return refused
`

// Check checks the setup of Redis. The error says in a sentence what to fix; it is
// ErrAway if there may be nothing to fix, because Redis is unreachable, still loading or
// without a master: then keep trying. The warnings are about settings that may lose
// data. Check takes five seconds at most.
func (r *Store) Check(ctx context.Context) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := r.CheckAccess(ctx); err != nil {
		return nil, err
	}
	return r.checkSettings(ctx)
}

// CheckAccess is Check without the settings of Redis: whether it can be reached, is of the
// configured kind, and gives the user the rights that are needed.
func (r *Store) CheckAccess(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	addresses := r.config.Addresses
	if r.config.SentinelMaster != "" {
		master, err := r.findMaster(ctx)
		if err != nil {
			return err
		}
		addresses = []string{master}
	}
	if err := anyOf(addresses, func(address string) error { return r.checkServer(ctx, address) }); err != nil {
		return err
	}
	if err := r.locate(ctx); err != nil {
		return &awayError{err.Error()}
	}
	var away error
	for _, shard := range r.shards.all() {
		switch err := r.checkRights(ctx, shard.probeKey()); {
		case errors.Is(err, store.ErrAway):
			away = err
		case err != nil:
			return err
		}
	}
	if away != nil {
		return away
	}
	return r.checkChannel(ctx)
}

// anyOf checks the addresses in turn until one is not away, and returns the result
// of that check.
func anyOf(addresses []string, check func(address string) error) error {
	var away error
	for _, address := range addresses {
		err := check(address)
		if !errors.Is(err, store.ErrAway) {
			return err
		}
		away = err
	}
	return away
}

// visit connects to one server alone.
func (r *Store) connectTo(address string, credentials func(context.Context) (string, string, error)) *redis.Client {
	options := r.options.Simple()
	options.Addr = address
	options.PoolSize, options.MinIdleConns = 1, 0
	options.CredentialsProviderContext = credentials
	return redis.NewClient(options)
}

// askSentinels returns the address of the master.
func (r *Store) findMaster(ctx context.Context) (master string, err error) {
	err = anyOf(r.config.Addresses, func(address string) error {
		sentinel := r.connectTo(address, func(context.Context) (string, string, error) {
			return r.config.SentinelUsername, currentPassword(r.config.SentinelPassword), nil
		})
		defer func() { _ = sentinel.Close() }()
		hello, err := readHello(ctx, sentinel)
		if err != nil {
			return r.advise(ctx, address, err, sentinelUser)
		}
		if hello["mode"] != "sentinel" {
			return fmt.Errorf("Redis at %s is not a sentinel: give the addresses of the sentinels, or no sentinel_master", address)
		}
		reply := redis.NewStringSliceCmd(ctx, "sentinel", "get-master-addr-by-name", r.config.SentinelMaster)
		switch err := sentinel.Process(ctx, reply); {
		case errors.Is(err, redis.Nil):
			return fmt.Errorf("the sentinel at %s watches no master named %q: set sentinel_master to the name that its configuration has after \"sentinel monitor\"", address, r.config.SentinelMaster)
		case err != nil:
			return r.advise(ctx, address, err, sentinelUser)
		case len(reply.Val()) != 2:
			return &awayError{errResponse.Error()}
		}
		master = net.JoinHostPort(reply.Val()[0], reply.Val()[1])
		return nil
	})
	return master, err
}

// readHello returns the properties that a server reports.
func readHello(ctx context.Context, client *redis.Client) (map[string]string, error) {
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, err
	}
	reply, err := client.Do(ctx, "hello").Result()
	if err != nil {
		return nil, err
	}
	hello := make(map[string]string)
	fields, _ := reply.(map[any]any)
	for name, value := range fields {
		if name, ok := name.(string); ok {
			hello[name] = fmt.Sprint(value)
		}
	}
	return hello, nil
}

// checkServer checks that a server is usable, and matches the configuration.
func (r *Store) checkServer(ctx context.Context, address string) error {
	client := r.connectTo(address, r.config.credentials)
	defer func() { _ = client.Close() }()
	hello, err := readHello(ctx, client)
	if err != nil {
		return r.advise(ctx, address, err, r.User())
	}
	replica := hello["role"] == "replica" || hello["role"] == "slave"
	switch {
	case redisinfo.IsOlder(hello["version"], 6, 2):
		return fmt.Errorf("Redis at %s has the version %s: at least 6.2 is needed, for the rights of users on channels", address, hello["version"])
	case hello["mode"] == "sentinel":
		return fmt.Errorf("the server at %s is a sentinel, not Redis: set sentinel_master to the name of the master that it watches", address)
	case hello["mode"] == "cluster" && !r.config.Cluster:
		return fmt.Errorf("Redis at %s is a node of a Cluster: set cluster: true", address)
	case hello["mode"] == "standalone" && r.config.Cluster:
		return fmt.Errorf("Redis at %s is not a node of a Cluster: leave out cluster: true, or give the addresses of the Cluster's nodes", address)
	case replica && r.config.SentinelMaster != "":
		return &awayError{"the sentinels name " + address + " as the master, which is still a replica"}
	case replica && !r.config.Cluster:
		return fmt.Errorf("Redis at %s is a replica, which cannot be written to: give the address of its master, or sentinel_master and the addresses of sentinels", address)
	case r.config.Cluster:
		return r.checkNode(ctx, address, client)
	}
	return nil
}

// checkNode checks the permissions that only a Cluster needs.
func (r *Store) checkNode(ctx context.Context, address string, client *redis.Client) error {
	for _, command := range []string{"cluster slots", "asking"} {
		var args []any
		for arg := range strings.FieldsSeq(command) {
			args = append(args, arg)
		}
		err := client.Do(ctx, args...).Err()
		if redis.IsPermissionError(err) {
			return r.lacks(command, err.Error())
		}
		if err != nil {
			return r.advise(ctx, address, err, r.User())
		}
	}
	return nil
}

// checkRights runs every command that is used, at a key's server.
func (r *Store) checkRights(ctx context.Context, key string) error {
	script := newScript(luaRights)
	names := []string{r.config.Prefix + key + "check"}
	if err := r.client.Process(ctx, script.whole(ctx, names, r.channel())); err != nil {
		return r.refused(ctx, "eval", err)
	}
	command := script.byHash(ctx, names, r.channel())
	if err := r.client.Process(ctx, command); err != nil {
		return r.refused(ctx, "evalsha", err)
	}
	refused, _ := command.Slice()
	for _, one := range refused {
		pair, _ := one.([]any)
		if len(pair) == 2 {
			return r.refusedInScript(fmt.Sprint(pair[0]), fmt.Sprint(pair[1]))
		}
	}
	return nil
}

// checkChannel subscribes to the channel of changes.
func (r *Store) checkChannel(ctx context.Context) error {
	subscription := r.client.Subscribe(ctx)
	defer func() { _ = subscription.Close() }()
	err := subscription.Subscribe(ctx, r.channel())
	if err == nil {
		_, err = subscription.ReceiveTimeout(ctx, r.limits.wire)
	}
	return r.refused(ctx, "subscribe", err)
}

func (r *Store) refused(ctx context.Context, command string, err error) error {
	switch {
	case err == nil:
		return nil
	case redis.IsPermissionError(err):
		return r.lacks(command, err.Error())
	default:
		return r.advise(ctx, strings.Join(r.config.Addresses, ", "), err, r.User())
	}
}

// refusedInScript handles a command that was refused within a script, where only some
// versions of Redis mark a missing permission with NOPERM.
func (r *Store) refusedInScript(command, reason string) error {
	if code := codeOf(reason); code != "ERR" && code != "NOPERM" {
		return &noWritesError{refusals[code], "Redis answered to " + command + ": " + firstSentence(reason)}
	}
	return r.lacks(command, reason)
}

// lacks names the missing permission. Only the text shows that it is one on a key or a
// channel.
func (r *Store) lacks(command, reason string) error {
	reason = strings.ToLower(reason)
	right := "run " + strings.ToUpper(command)
	switch {
	case strings.Contains(reason, "channel"):
		right = "use the channel " + r.channel()
	case strings.Contains(reason, " key"):
		right = "use the keys " + r.config.Prefix + "*"
	}
	return fmt.Errorf("the rights of %s in Redis are too narrow, it may not %s: give it those of this line: %s", r.User(), right, r.acl())
}

// acl is the ACL line for this store.
func (r *Store) acl() string {
	line := strings.ReplaceAll(ACLExample, DefaultPrefix, r.config.Prefix)
	if r.config.Username != "" {
		line = strings.Replace(line, "tokenbroker", r.config.Username, 1)
	}
	if r.config.Cluster {
		line += " " + ACLCluster
	}
	if r.config.DB != 0 {
		line += " +select"
	}
	return line
}

// User describes the user of the connection.
func (r *Store) User() string {
	if r.config.Username == "" {
		return "the default user"
	}
	return fmt.Sprintf("the user %q", r.config.Username)
}

// advise returns an error with advice about a server that it could not talk to.
func (r *Store) advise(ctx context.Context, address string, err error, user string) error {
	var authority x509.UnknownAuthorityError
	var certificate *tls.CertificateVerificationError
	var notTLS tls.RecordHeaderError
	switch {
	case redis.HasErrorPrefix(err, "WRONGPASS"):
		return fmt.Errorf("Redis at %s refuses the login of %s: the password is wrong, or the user does not exist or is disabled", address, user)
	case redis.HasErrorPrefix(err, "NOAUTH") && user == sentinelUser:
		return fmt.Errorf("the sentinel at %s requires a login: set sentinel_password, and sentinel_username unless it is the default user", address)
	case redis.HasErrorPrefix(err, "NOAUTH"):
		return fmt.Errorf("Redis at %s requires a login: set password, and username unless it is the default user", address)
	case redis.HasErrorPrefix(err, "AUTH"):
		return fmt.Errorf("Redis at %s requires no password, but password is set: leave it out, or have Redis require it", address)
	case redis.IsPermissionError(err):
		return r.lacks(quotedCommand(err), err.Error())
	case errors.As(err, &authority):
		return fmt.Errorf("the certificate of Redis at %s is signed by an authority that is not trusted: set tls.ca to the file with the CA that signed it", address)
	case errors.As(err, &certificate):
		return fmt.Errorf("the certificate of Redis at %s does not fit: correct it or tls.server_name: %w", address, certificate.Err)
	case errors.As(err, &notTLS), isTimeout(err) && r.config.TLS != nil && r.speaksPlain(ctx, address):
		return fmt.Errorf("Redis at %s does not speak TLS: give the address of its TLS port, or leave out tls", address)
	case isClosed(err):
		return r.adviseClosed(ctx, address, err)
	}
	return &awayError{describe(err)}
}

// quotedCommand is the command that Redis says is not permitted.
func quotedCommand(err error) string {
	_, rest, _ := strings.Cut(err.Error(), "'")
	command, _, _ := strings.Cut(rest, "'")
	return command
}

// isClosed reports whether the other side ended the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || isTLSAlert(err)
}

// isTLSAlert reports whether the other side ended a TLS handshake with an alert.
func isTLSAlert(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) && network.Op == "remote error"
}

// adviseHungUp advises on a server that ended a connection without a response, as Redis
// does if TLS, or a certificate, does not meet its settings.
func (r *Store) adviseClosed(ctx context.Context, address string, err error) error {
	speaksTLS := r.speaksTLS(ctx, address)
	switch {
	case speaksTLS && r.config.TLS == nil:
		return fmt.Errorf("Redis at %s speaks TLS: set tls, or give the address of its plaintext port", address)
	case speaksTLS && len(r.config.TLS.Certificates) == 0 && r.config.TLS.GetClientCertificate == nil:
		return fmt.Errorf("Redis at %s requires a client certificate: set tls.cert and tls.key to one that its CA has signed", address)
	case speaksTLS:
		return fmt.Errorf("Redis at %s refuses our client certificate: set tls.cert and tls.key to one that its CA has signed", address)
	}
	return &awayError{describe(err)}
}

// speaksTLS reports whether a server completes a TLS handshake.
func (r *Store) speaksTLS(ctx context.Context, address string) bool {
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: r.limits.dial},
		Config:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // nothing is sent: it is hung up at once
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil || isTLSAlert(err)
}

// speaksPlain reports whether a server responds in plaintext. Redis, which takes a TLS
// handshake for the beginning of a command, just waits for its end.
func (r *Store) speaksPlain(ctx context.Context, address string) bool {
	conn, err := (&net.Dialer{Timeout: r.limits.dial}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(r.limits.wire)) // else the read fails
	first := make([]byte, 1)
	_, err = io.WriteString(conn, "PING\r\n")
	_, err2 := io.ReadFull(conn, first)
	return err == nil && err2 == nil && (first[0] == '+' || first[0] == '-')
}
