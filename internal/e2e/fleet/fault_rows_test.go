package fleet

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
)

// faultRow is a fault that befalls a running fleet, and its effects. The rows are data:
// docs/consistency.md has the same table.
type faultRow struct {
	fault string // in words
	// setup is the part of the fleet that differs; nil: one Redis, and an IdP without a proxy.
	setup        func(t *testing.T, f *faultFleet)
	strike, mend func(t *testing.T, f *faultFleet)

	// The results of calls while the fault lasts: OK, or the code and the reason.
	hit, miss, verify string
	// calls are the requests that the IdP gets for tokenFaultRounds new tokens, each requested
	// twice by all replicas at once.
	calls callRange
	// shows are the metrics that change, and no others of watchedMetrics.
	shows []string
	// short rows run in make test, the others in make test-long.
	short bool
	// lasting: the same request fails for minutes after the fault, as the IdP asked, or
	// because the broker repeats a refused request seldom. New requests succeed.
	lasting bool
}

type callRange struct {
	least, most int
	text        string
}

const (
	tokenFaultRounds   = 3
	tokenFaultReplicas = 3
)

var (
	once           = callRange{tokenFaultRounds, tokenFaultRounds, "one for each token"}
	eachReplica    = callRange{tokenFaultRounds, tokenFaultRounds * tokenFaultReplicas, "up to one for each token and replica"}
	onceAltogether = callRange{1, 1, "one"}
	noCalls        = callRange{0, 0, "none"}
	// Some IdPs repeat a token until it ends, so the broker asks again for half a second each.
	fiveTimes = callRange{5 * tokenFaultRounds, 7 * tokenFaultRounds, "five for each token, and one after each pause"}
	// A failure is remembered for half a second or more, which a slow machine may exceed.
	afterPauses = callRange{tokenFaultRounds, 3 * tokenFaultRounds, "one for each token, and one after each pause"}
)

const (
	unavailable = "UNAVAILABLE IDP_UNAVAILABLE"

	storeReads    = `tokenbroker_store_up{operation="read"}`
	storeWrites   = `tokenbroker_store_up{operation="write"}`
	clientBackoff = "tokenbroker_client_backoff"
	callsFailed   = `tokenbroker_token_requests_total{result="failed"}`
	inBackoff     = `tokenbroker_idp_calls_avoided_total{reason="backoff"}`
)

func fetches(result string) string {
	return fmt.Sprintf("tokenbroker_idp_fetches_total{result=%q}", result)
}

// watchedMetrics are the metrics of which a row names those that change. The value is that
// of a healthy fleet; counters have none.
var watchedMetrics = []struct {
	series string
	gauge  bool
	normal float64
}{
	{storeReads, true, 1}, {storeWrites, true, 1}, {clientBackoff, true, 0},
	{fetches("transient"), false, 0}, {fetches("throttled"), false, 0}, {fetches("credential_refused"), false, 0},
	{fetches("request_refused"), false, 0}, {fetches("misconfigured"), false, 0},
	{callsFailed, false, 0}, {inBackoff, false, 0},
}

var faultRows = []faultRow{
	{
		fault: "Redis is away", short: true,
		strike: func(_ *testing.T, f *faultFleet) { f.redis.Kill() }, mend: func(_ *testing.T, f *faultFleet) { f.redis.Restart() },
		hit: "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault:  "Redis is read-only",
		strike: func(_ *testing.T, f *faultFleet) { f.redis.CLI("replicaof", "127.0.0.1", "1") },
		mend:   func(_ *testing.T, f *faultFleet) { f.redis.CLI("replicaof", "no", "one") },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeWrites},
	},
	{
		fault: "Redis is out of memory", short: true,
		strike: func(_ *testing.T, f *faultFleet) { f.redis.CLI("config", "set", "maxmemory", "1") },
		mend:   func(_ *testing.T, f *faultFleet) { f.redis.CLI("config", "set", "maxmemory", "0") },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeWrites},
	},
	{
		fault: "Redis takes 0.1 s for each response", setup: redisBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.delay(100 * time.Millisecond) },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.restore() },
		hit:    "OK", miss: "OK", verify: "OK", calls: once,
	},
	{
		fault: "Redis takes 2 s for each response", setup: redisBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.delay(2 * time.Second) },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.restore() },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault:  "Redis hangs",
		strike: func(_ *testing.T, f *faultFleet) { f.redis.Stop() }, mend: func(_ *testing.T, f *faultFleet) { f.redis.Cont() },
		hit: "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault: "Connections to Redis are half-open", setup: redisBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.silence("downstream") },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.restore() },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault: "Redis fails over (Sentinel)",
		setup: func(t *testing.T, f *faultFleet) {
			f.sentinel = redistest.StartSentinel(t, redisOptions())
			f.store = redisConfig(t, "sentinel_master: "+redistest.MasterName+",", f.sentinel.Addrs()...)
		},
		strike: func(_ *testing.T, f *faultFleet) { f.sentinel.Master.Kill() },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault: "The shard of the client is away (Redis Cluster)",
		setup: func(t *testing.T, f *faultFleet) {
			f.cluster = redistest.StartMasters(t, redisOptions())
			f.store = redisConfig(t, "cluster: true,", f.cluster.Addrs()...)
		},
		strike: func(t *testing.T, f *faultFleet) { f.shard(t).Kill() },
		mend:   func(_ *testing.T, f *faultFleet) { f.dead.Restart() },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault:  "Redis loses its data",
		strike: func(_ *testing.T, f *faultFleet) { f.redis.CLI("flushall") },
		hit:    "OK", miss: "OK", verify: "OK", calls: once,
	},
	{
		fault: "Redis accepts another password only (WRONGPASS)",
		strike: func(_ *testing.T, f *faultFleet) {
			f.redis.CLI("acl", "setuser", "tokenbroker", "resetpass", ">another")
			f.redis.CLI("client", "kill", "user", "tokenbroker")
		},
		mend: func(_ *testing.T, f *faultFleet) {
			f.redis.CLI("acl", "setuser", "tokenbroker", "resetpass", ">"+redisPassword)
		},
		hit: "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},
	{
		fault:  "The user of Redis may not write",
		strike: func(_ *testing.T, f *faultFleet) { f.redis.CLI("acl", "setuser", "tokenbroker", "-set") },
		mend:   func(_ *testing.T, f *faultFleet) { f.redis.CLI("acl", "setuser", "tokenbroker", "+set") },
		hit:    "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeWrites},
	},
	{
		fault:  "The user of Redis has no permissions",
		strike: func(_ *testing.T, f *faultFleet) { f.redis.CLI("acl", "setuser", "tokenbroker", "-@all") },
		mend: func(_ *testing.T, f *faultFleet) {
			f.redis.CLI(append([]string{"acl", "setuser"}, strings.Fields(redisOptions().ACL[0])[1:]...)...)
		},
		hit: "OK", miss: "OK", verify: "OK", calls: eachReplica, shows: []string{storeReads, storeWrites},
	},

	{
		fault: "The IdP is down", short: true, setup: idpBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.enable(false) },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.enable(true) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: noCalls, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "The IdP answers with status 500", short: true,
		strike: func(_ *testing.T, f *faultFleet) { f.idp.FailNext(1<<30, http.StatusInternalServerError, "", nil) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.FailNext(0, 0, "", nil) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: afterPauses, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "The IdP throttles the client (status 429, Retry-After)", short: true,
		strike: func(_ *testing.T, f *faultFleet) {
			f.idp.FailNext(1<<30, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"20"}})
		},
		mend: func(_ *testing.T, f *faultFleet) { f.idp.FailNext(0, 0, "", nil) },
		hit:  "OK", miss: "RESOURCE_EXHAUSTED IDP_THROTTLED", verify: "OK", calls: onceAltogether,
		shows: []string{fetches("throttled"), clientBackoff, callsFailed, inBackoff},
	},
	{
		fault:  "The IdP does not answer",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetDelay(time.Hour) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetDelay(0) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: afterPauses, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault:  "The IdP takes 3 s for each response",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetDelay(3 * time.Second) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetDelay(0) },
		hit:    "OK", miss: "OK", verify: "OK", calls: once,
	},
	{
		fault:  "Responses of the IdP are truncated",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(truncated) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(nil) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: afterPauses, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault:  "Responses of the IdP are huge",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(huge) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(nil) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: afterPauses, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault:  "The IdP refuses the secret (`invalid_client`)",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.Takes("another") }, mend: func(_ *testing.T, f *faultFleet) { f.idp.Takes("right") },
		hit: "OK", miss: "FAILED_PRECONDITION CLIENT_CREDENTIALS_REFUSED", verify: "OK", calls: onceAltogether,
		shows: []string{fetches("credential_refused"), clientBackoff, callsFailed, inBackoff},
	},
	{
		fault: "The IdP refuses the grant (`invalid_grant`)", lasting: true,
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(refusing(http.StatusBadRequest, "invalid_grant")) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(nil) },
		hit:    "OK", miss: "FAILED_PRECONDITION TOKEN_REQUEST_REFUSED", verify: "OK", calls: once,
		shows: []string{fetches("request_refused"), callsFailed, inBackoff},
	},
	{
		fault: "The IdP refuses the scopes (`invalid_scope`)", short: true, lasting: true,
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(refusing(http.StatusBadRequest, "invalid_scope")) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(nil) },
		hit:    "OK", miss: "FAILED_PRECONDITION TOKEN_REQUEST_REFUSED", verify: "OK", calls: once,
		shows: []string{fetches("request_refused"), callsFailed, inBackoff},
	},
	{
		fault:  "The IdP issues tokens that have expired",
		strike: func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(expired) },
		mend:   func(_ *testing.T, f *faultFleet) { f.idp.SetAnswer(nil) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: fiveTimes, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "The certificate of the IdP is of another authority", setup: idpWithTLS,
		strike: func(_ *testing.T, f *faultFleet) { f.front.serve(f.front.stranger) },
		mend:   func(_ *testing.T, f *faultFleet) { f.front.serve(f.front.own) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: noCalls, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "The name of the IdP does not resolve", setup: idpByName,
		strike: func(t *testing.T, f *faultFleet) { f.names.forget(t, f) },
		mend:   func(t *testing.T, f *faultFleet) { f.names.publish(t) },
		hit:    "OK", miss: unavailable, verify: "OK", calls: noCalls, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "Packets to the IdP are lost", setup: idpBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.silence("upstream") },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.restore() },
		hit:    "OK", miss: unavailable, verify: "OK", calls: noCalls, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
	{
		fault: "The network resets connections to the IdP", setup: idpBehindProxy,
		strike: func(_ *testing.T, f *faultFleet) { f.proxy.reset() },
		mend:   func(_ *testing.T, f *faultFleet) { f.proxy.restore() },
		hit:    "OK", miss: unavailable, verify: "OK", calls: callRange{0, 2 * tokenFaultRounds, "up to two for each token"}, shows: []string{fetches("transient"), callsFailed, inBackoff},
	},
}

// truncated answers with the first part of a response.
func truncated(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "1000")
	_, _ = fmt.Fprint(w, `{"access_token":"abc`)
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
	panic(http.ErrAbortHandler)
}

// huge answers with a response of many megabytes.
func huge(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"access_token":"%s","token_type":"Bearer","expires_in":3600}`, strings.Repeat("a", 32<<20))
	return true
}

// expired answers with a token that has no lifetime left.
func expired(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprint(w, `{"access_token":"ended","token_type":"Bearer","expires_in":0}`)
	return true
}
