package redisstore_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// mend is a configuration or a server that a person must mend, and what
// Check says. Warnings are in lines of their own.
type mend struct {
	name   string
	config redisstore.Config
	says   string
}

func checkAll(t *testing.T, cases []mend) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := openPatient(t, c.config)
			warnings, err := r.Check(t.Context())
			said := strings.Join(warnings, "\n")
			if err != nil {
				said += err.Error()
			}
			said = strings.ReplaceAll(said, c.config.Addresses[0], "ADDRESS")
			if said != c.says {
				t.Errorf("it says\n%s\nbut should say\n%s", said, c.says)
			}
			if errors.Is(err, store.ErrAway) != (strings.HasPrefix(c.says, "Redis is away") || strings.HasPrefix(c.says, "Redis takes no writes")) {
				t.Errorf("it is away: %v", err)
			}
			showsNothing(t, said)
		})
	}
}

const noFile = "Redis: it keeps no append-only file, so a restart may lose tokens and epochs: tokens are fetched again, and epochs are restored by the replicas that hold them; set appendonly yes to keep both"

func TestRedisCheck_login(t *testing.T) {
	open := redistest.Start(t, redistest.Options{})
	closed := redistest.Start(t, redistest.Options{Password: testPassword, ACL: []string{
		aclLine(), "user off off >" + testPassword,
	}})
	with := func(username, password string) redisstore.Config {
		return redisstore.Config{Addresses: []string{closed.Addr()}, Username: username, Password: passwordSource(t, password)}
	}
	refused := func(user string) string {
		return "Redis at ADDRESS refuses the login of " + user + ": the password is wrong, or the user does not exist or is disabled"
	}
	checkAll(t, []mend{
		{"no password is needed", redisstore.Config{Addresses: []string{open.Addr()}}, noFile},
		{"right password", with("", testPassword), noFile},
		{"wrong password", with("", "canary-wrong"), refused("the default user")},
		{"wrong password of a user", with("tokenbroker", "canary-wrong"), refused(`the user "tokenbroker"`)},
		{"no such user", with("nobody", testPassword), refused(`the user "nobody"`)},
		{"user switched off", with("off", testPassword), refused(`the user "off"`)},
		{"no password", redisstore.Config{Addresses: []string{closed.Addr()}}, "Redis at ADDRESS requires a login: set password, and username unless it is the default user"},
	})
}

func TestRedisCheck_missingRight(t *testing.T) {
	var users []string
	var cases []mend
	add := func(name, line, right string) {
		users = append(users, strings.Replace(line, "tokenbroker", name, 1))
		says := fmt.Sprintf(`the rights of the user %q in Redis are too narrow, it may not %s: give it those of this line: `, name, right) +
			strings.Replace(redisstore.ACLExample, "tokenbroker", name, 1)
		cases = append(cases, mend{name: name, config: redisstore.Config{Username: name}, says: says})
	}
	for field := range strings.FieldsSeq(aclLine()) {
		if command, isCommand := strings.CutPrefix(field, "+"); isCommand {
			add("no-"+command, strings.Replace(aclLine(), " "+field, "", 1), "run "+strings.ToUpper(command))
		}
	}
	if len(cases) < 10 {
		t.Fatalf("the line of the documentation has only %d commands", len(cases))
	}
	add("other-keys", strings.Replace(aclLine(), "~tb1:*", "~tb2:*", 1), "use the keys tb1:*")
	add("other-channels", strings.Replace(aclLine(), "&tb1:*", "&tb2:*", 1), "use the channel tb1:ev")
	server := redistest.Start(t, redistest.Options{ACL: users})
	for i := range cases {
		cases[i].config.Addresses = []string{server.Addr()}
		cases[i].config.Password = passwordSource(t, testPassword)
	}
	database := cases[0]
	database.name, database.config.Username, database.config.DB = "no-select", "other-keys", 1
	database.says = `the rights of the user "other-keys" in Redis are too narrow, it may not run SELECT: give it those of this line: ` +
		strings.Replace(redisstore.ACLExample, "tokenbroker", "other-keys", 1) + " +select"
	checkAll(t, append(cases, database))
}

func TestRedisCheck_tls(t *testing.T) {
	t.Parallel()
	certificates, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	encrypted := redistest.Start(t, redistest.Options{Certificates: certificates})
	plain := redistest.Start(t, redistest.Options{})
	with := func(server *redistest.Server, config *tls.Config) redisstore.Config {
		return redisstore.Config{Addresses: []string{server.Addr()}, TLS: config}
	}
	elsewhere := certificates.Client(t)
	elsewhere.ServerName = "redis.example.com"
	foreign := certificates.Client(t)
	foreign.Certificates = others.Client(t).Certificates
	old := certificates.Anonymous()
	old.MaxVersion = tls.VersionTLS12
	checkAll(t, []mend{
		{"all is right", with(encrypted, certificates.Client(t)), noFile},
		{"plaintext to TLS", with(encrypted, nil), "Redis at ADDRESS speaks TLS: set tls, or give the address of its plaintext port"},
		{"TLS to plaintext", with(plain, certificates.Client(t)), "Redis at ADDRESS does not speak TLS: give the address of its TLS port, or leave out tls"},
		{"wrong CA", with(encrypted, others.Client(t)), "the certificate of Redis at ADDRESS is signed by an authority that is not trusted: set tls.ca to the file with the CA that signed it"},
		{"wrong name", with(encrypted, elsewhere), "the certificate of Redis at ADDRESS does not fit: correct it or tls.server_name: x509: certificate is valid for localhost, not redis.example.com"},
		{"no client certificate", with(encrypted, certificates.Anonymous()), "Redis at ADDRESS requires a client certificate: set tls.cert and tls.key to one that its CA has signed"},
		{"no client certificate with TLS 1.2", with(encrypted, old), "Redis at ADDRESS requires a client certificate: set tls.cert and tls.key to one that its CA has signed"},
		{"client certificate of another CA", with(encrypted, foreign), "Redis at ADDRESS refuses our client certificate: set tls.cert and tls.key to one that its CA has signed"},
	})
}

func TestRedisCheck_wrongMode(t *testing.T) {
	t.Parallel()
	single := redistest.Start(t, redistest.Options{})
	narrow := userOf(t)
	cluster := redistest.StartCluster(t, redistest.Options{Password: testPassword, ACL: []string{
		aclLine("+asking"), strings.Replace(aclLine("+cluster|slots"), "tokenbroker", "no-asking", 1),
	}})
	sentinel := redistest.StartSentinel(t, redistest.Options{Password: testPassword, Config: []string{"appendonly yes"}})
	password := passwordSource(t, testPassword)
	lacks := func(user, command string) string {
		return fmt.Sprintf("the rights of the user %q in Redis are too narrow, it may not run %s: give it those of this line: ", user, command) +
			strings.Replace(redisstore.ACLExample, "tokenbroker", user, 1) + " " + redisstore.ACLCluster
	}
	away := "Redis is away: dial tcp ADDRESS: connect: connection refused"
	checkAll(t, []mend{
		{"single for a cluster", redisstore.Config{Addresses: []string{single.Addr()}, Cluster: true}, "Redis at ADDRESS is not a node of a Cluster: leave out cluster: true, or give the addresses of the Cluster's nodes"},
		{"cluster for a single", redisstore.Config{Addresses: cluster.Addrs()[:1], Password: password}, "Redis at ADDRESS is a node of a Cluster: set cluster: true"},
		{"cluster", redisstore.Config{Addresses: cluster.Addrs(), Password: password, Cluster: true}, noFile},
		{"cluster without its rights", redisstore.Config{Addresses: cluster.Addrs()[:1], Username: "tokenbroker", Password: narrow.Password, Cluster: true}, lacks("tokenbroker", "CLUSTER SLOTS")},
		{"cluster without the right of being redirected", redisstore.Config{Addresses: cluster.Addrs()[:1], Username: "no-asking", Password: narrow.Password, Cluster: true}, lacks("no-asking", "ASKING")},
		{"single for a sentinel", redisstore.Config{Addresses: []string{single.Addr()}, SentinelMaster: "m"}, "Redis at ADDRESS is not a sentinel: give the addresses of the sentinels, or no sentinel_master"},
		{"sentinel for a single", redisstore.Config{Addresses: sentinel.Addrs()[:1]}, "the server at ADDRESS is a sentinel, not Redis: set sentinel_master to the name of the master that it watches"},
		{"sentinel", redisstore.Config{Addresses: sentinel.Addrs(), SentinelMaster: redistest.MasterName, Password: password}, ""},
		{"sentinel with another master", redisstore.Config{Addresses: sentinel.Addrs(), SentinelMaster: "other"}, `the sentinel at ADDRESS watches no master named "other": set sentinel_master to the name that its configuration has after "sentinel monitor"`},
		{"replica for a single", redisstore.Config{Addresses: []string{sentinel.Replica.Addr()}, Password: password}, "Redis at ADDRESS is a replica, which cannot be written to: give the address of its master, or sentinel_master and the addresses of sentinels"},
	})
	single.Kill()
	checkAll(t, []mend{
		{"single refuses", redisstore.Config{Addresses: []string{single.Addr()}}, away},
		{"sentinel refuses", redisstore.Config{Addresses: []string{single.Addr()}, SentinelMaster: redistest.MasterName}, away},
		{"cluster refuses", redisstore.Config{Addresses: []string{single.Addr()}, Cluster: true}, away},
		{"one seed of a cluster refuses", redisstore.Config{Addresses: []string{single.Addr(), cluster.Addrs()[0]}, Password: password, Cluster: true}, noFile},
		{"one sentinel refuses", redisstore.Config{Addresses: []string{single.Addr(), sentinel.Addrs()[0]}, Password: password, SentinelMaster: redistest.MasterName}, ""},
	})
	sentinel.Sentinels[0].Stop()
	checkAll(t, []mend{{"it hangs", redisstore.Config{Addresses: sentinel.Addrs()[:1]}, "Redis is away: Redis did not answer in time"}})
}

func TestRedisCheck_settings(t *testing.T) {
	server := redistest.Start(t, redistest.Options{AppendOnly: true, ACL: []string{aclLine("+info")}})
	config := userOf(t, server.Addr())
	check := func(name, says string) {
		t.Helper()
		checkAll(t, []mend{{name, config, says}})
	}
	checkMatches := func(says string) {
		t.Helper()
		warnings, err := openPatient(t, config).Check(t.Context())
		if said := strings.Join(warnings, "\n"); err != nil || !regexp.MustCompile("^"+says+"$").MatchString(said) {
			t.Errorf("short of memory it says\n%s, %v", said, err)
		}
	}
	check("persistent, no limit", "")
	server.CLI("config", "set", "maxmemory", "100mb")
	check("limited", "Redis: with maxmemory-policy noeviction it refuses all writes once it is full: set it to volatile-ttl or volatile-lru")
	server.CLI("config", "set", "maxmemory-policy", "allkeys-lru")
	check("evicts what must stay", "Redis: maxmemory-policy allkeys-lru may evict data that must stay, such as the epochs that purges have raised: set it to volatile-ttl or volatile-lru")
	server.CLI("config", "set", "maxmemory-policy", "volatile-ttl")
	check("evicts what may go", "")
	server.CLI("config", "set", "maxmemory", "4mb")
	server.CLI("eval", "for i = 1, 20000 do redis.call('set', 'fill' .. i, string.rep('x', 1000), 'ex', 1000) end", "0")
	checkMatches(`Redis: \d+ % of its maxmemory is used: raise it, or tokens and leases are evicted and fetched more than once
Redis: it has evicted \d+ keys since its start: raise maxmemory, or tokens are fetched more often than their lifetimes require`)
	server.CLI("flushall")
	server.CLI("config", "set", "maxmemory", "100mb")
	server.CLI("config", "resetstat")
	server.CLI("config", "set", "appendonly", "no")
	check("not persistent", noFile)
	server.CLI("config", "set", "maxmemory-policy", "noeviction")
	server.CLI("config", "set", "maxmemory", "1mb")
	server.CLI("eval", "for i = 1, 20000 do if redis.pcall('set', 'fill' .. i, string.rep('x', 1000)).err then break end end", "0")
	check("full", "Redis takes no writes: Redis answered to SET: OOM command not allowed when used memory > 'maxmemory'")
	server.CLI("flushall")
	server.CLI("config", "set", "maxmemory", "0")
	server.CLI("acl", "setuser", "tokenbroker", "-info")
	check("may not be asked", `Redis: its eviction and persistence could not be checked, because the user "tokenbroker" may not run INFO: allow it +info, or make sure that maxmemory-policy is volatile-ttl or volatile-lru`)
}

// What no server that is at hand would say.
func TestRedisCheck_oldOrLoadingServer(t *testing.T) {
	const pong, loading = "+PONG\r\n", "-LOADING Redis is loading the dataset in memory\r\n"
	hello := func(version string) string {
		return "%3\r\n+server\r\n+redis\r\n+version\r\n+" + version + "\r\n+mode\r\n+standalone\r\n"
	}
	checkAll(t, []mend{
		{"old", redisstore.Config{Addresses: []string{scriptedServer(t, map[string]string{"hello": hello("6.0.16"), "ping": pong})}}, "Redis at ADDRESS has the version 6.0.16: at least 6.2 is needed, for the rights of users on channels"},
		{"loading", redisstore.Config{Addresses: []string{scriptedServer(t, map[string]string{"hello": hello("7.0.15"), "ping": loading})}}, "Redis is away: Redis answered LOADING Redis is loading the dataset in memory"},
		{"garbage", redisstore.Config{Addresses: []string{scriptedServer(t, map[string]string{"hello": hello("7.0.15"), "ping": "canary\r\n"})}}, "Redis is away: Redis sent a response that the client does not understand"},
	})
}

// scriptedServer has but some answers, by commands. It returns its address.
func scriptedServer(t *testing.T, answers map[string]string) string {
	t.Helper()
	answers = maps.Clone(answers) // the caller may change its own while connections are open
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					_, _ = io.WriteString(conn, answers[strings.ToLower(lines.Text())])
				}
			}()
		}
	}()
	return listener.Addr().String()
}

func TestContradictoryRedisConfigIsRefused(t *testing.T) {
	password := passwordSource(t, testPassword)
	one, two := []string{"a:1"}, []string{"a:1", "b:2"}
	for name, c := range map[string]struct {
		config redisstore.Config
		says   string
	}{
		"no address":                       {redisstore.Config{}, "no address"},
		"no port":                          {redisstore.Config{Addresses: []string{"redis"}}, "not host:port"},
		"several servers":                  {redisstore.Config{Addresses: two}, "several addresses"},
		"cluster and sentinels":            {redisstore.Config{Addresses: two, Cluster: true, SentinelMaster: "m"}, "not both"},
		"database of a cluster":            {redisstore.Config{Addresses: two, Cluster: true, DB: 1}, "in a cluster 0"},
		"database below 0":                 {redisstore.Config{Addresses: one, DB: -1}, "must be 0 or more"},
		"user without a password":          {redisstore.Config{Addresses: one, Username: "u"}, "give one"},
		"sentinel user without a password": {redisstore.Config{Addresses: one, Password: password, SentinelMaster: "m", SentinelUsername: "u"}, "give one"},
		"prefix with a hash tag":           {redisstore.Config{Addresses: one, Prefix: "{tb1}"}, "the Redis prefix"},
		"prefix with a pattern":            {redisstore.Config{Addresses: one, Prefix: "tb*"}, "the Redis prefix"},
		"prefix too long":                  {redisstore.Config{Addresses: one, Prefix: strings.Repeat("p", 65)}, "the Redis prefix"},
	} {
		if _, err := redisstore.New(c.config); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
