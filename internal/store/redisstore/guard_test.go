package redisstore_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/storetest"
)

// scriptGuards are the guards of the scripts. Without a guard, its test fails: one of the
// conformance suite, or a test of this package whose name begins with Test.
var scriptGuards = []struct {
	name string
	redisstore.Guard

	test string
}{
	{"an error of a command ends the script", redisstore.Guard{Text: "if type(answer) == 'table' and answer.err then", Instead: "if false then"}, "TestFullRedisReleasesLeases"},
	{"a right that is missing is not absence", redisstore.Guard{Text: "if not string.find(answer.err, '^WRONGTYPE') then", Instead: "if false then"}, "TestRedisMissingRightIsNotAbsence"},
	{"a key of another type counts as absent", redisstore.Guard{Text: "if not string.find(answer.err, '^WRONGTYPE') then", Instead: "if true then"}, "TestRedisReadsGarbageAsLost"},
	{"a number does not begin with 0", redisstore.Guard{Text: "'^([1-9]%d*)(.*)$'", Instead: "'^(%d+)(.*)$'"}, "TestRedisReadsGarbageAsLost"},
	{"a number is not too large", redisstore.Guard{Text: "if not digits or #digits > 16 or tonumber(digits) > MAX or string.find", Instead: "if not digits or string.find"}, "TestRedisReadsGarbageAsLost"},
	{"a number ends before the value", redisstore.Guard{Text: "or string.find(rest, '^[^:]') then", Instead: "then"}, "TestRedisReadsGarbageAsLost"},
	{"numbers are exact", redisstore.Guard{Text: "return string.format('%.0f', number)", Instead: "return tostring(number)"}, "counters beyond the bounds are refused"},

	{"a lease ends before its key", redisstore.Guard{Text: "call('PTTL', key) > SPARE", Instead: "true"}, "a lease is free once it expired"},
	{"a key outlives its lease", redisstore.Guard{Text: "local SPARE = 86400000", Instead: "local SPARE = 0"}, "TestRedisEvictsLeasesLast"},
	{"the fence of a lease is not too large", redisstore.Guard{Text: "if not digits or #digits > 16 or tonumber(digits) > MAX then", Instead: "if not digits then"}, "TestRedisReadsGarbageAsLost"},

	{"a lease has one holder", redisstore.Guard{Script: "acquire", Text: "if lasts then", Instead: "if false then"}, "a lease has one holder"},
	{"a claim by another owner fails", redisstore.Guard{Script: "acquire", Text: "if owner ~= ARGV[1] then", Instead: "if false then"}, "a lease has one holder"},
	{"a holder may claim again", redisstore.Guard{Script: "acquire", Text: "if owner ~= ARGV[1] then", Instead: "if true then"}, "a holder that claims again keeps lease and fence"},
	{"a claim cuts a lease that is too long", redisstore.Guard{Script: "acquire", Text: "if call('PTTL', KEYS[1]) > tonumber(lasting(ARGV[2])) then", Instead: "if false then"}, "a lease lasts no longer than a claim that finds it held"},
	{"a claim that fails prolongs no lease", redisstore.Guard{Script: "acquire", Text: "if call('PTTL', KEYS[1]) > tonumber(lasting(ARGV[2])) then", Instead: "if true then"}, "a claim that is refused takes nothing"},
	{"a holder that claims again prolongs its lease", redisstore.Guard{Script: "acquire", Text: "    call('PEXPIRE', KEYS[1], lasting(ARGV[2]))\n    return fence\n", Instead: "    return fence\n"}, "a holder that claims again keeps lease and fence"},
	{"a fence is above the counter", redisstore.Guard{Script: "acquire", Text: "math.max(read(KEYS[2]), tonumber(ARGV[3]))", Instead: "tonumber(ARGV[3])"}, "fences grow across leases, releases and expiries"},
	{"a fence is above the floor", redisstore.Guard{Script: "acquire", Text: "math.max(read(KEYS[2]), tonumber(ARGV[3]))", Instead: "read(KEYS[2])"}, "a fence is above the floor"},
	{"a fence is a new one", redisstore.Guard{Script: "acquire", Text: "tonumber(ARGV[3])) + 1", Instead: "tonumber(ARGV[3]))"}, "fences grow across leases, releases and expiries"},
	{"a fence is not too large", redisstore.Guard{Script: "acquire", Text: "if fence > MAX then", Instead: "if false then"}, "counters beyond the bounds are refused"},
	{"the counter remembers the fence", redisstore.Guard{Script: "acquire", Text: "call('SET', KEYS[2], text(fence))", Instead: ""}, "an owner that lost its lease gets a new fence"},
	{"a lease expires", redisstore.Guard{Script: "acquire", Text: ", 'PX', lasting(ARGV[2]))", Instead: ")"}, "a lease has one holder"},

	{"an expired lease is not renewed", redisstore.Guard{Script: "renew", Text: "if not lasts or owner", Instead: "if owner"}, "renewing keeps a lease"},
	{"only the holder renews", redisstore.Guard{Script: "renew", Text: "if not lasts or owner ~= ARGV[1] then", Instead: "if not lasts then"}, "nobody but the holder renews or releases"},
	{"renewing prolongs a lease", redisstore.Guard{Script: "renew", Text: "  call('PEXPIRE', KEYS[1], lasting(ARGV[2]))\n", Instead: ""}, "renewing keeps a lease"},

	{"only a higher number is written", redisstore.Guard{Script: "apply", Text: "if tonumber(number) > read(key) then", Instead: "if true then"}, "only a higher number overwrites"},
	{"the same number is not written", redisstore.Guard{Script: "apply", Text: "if tonumber(number) > read(key) then", Instead: "if tonumber(number) >= read(key) then"}, "only a higher number overwrites"},
	{"a value expires", redisstore.Guard{Script: "apply", Text: "if millis == '0' then", Instead: "if true then"}, "a value lives as long as its lifetime"},
	{"a value without a lifetime stays", redisstore.Guard{Script: "apply", Text: "if millis == '0' then", Instead: "if false then"}, "a value without a lifetime stays"},
	{"a put that was not applied is reported", redisstore.Guard{Script: "apply", Text: "applied[i] = 0", Instead: "applied[i] = 1"}, "only a higher number overwrites"},
	{"a put is announced", redisstore.Guard{Script: "apply", Text: "      table.insert(changed, key)\n", Instead: ""}, "a subscriber is told of puts, raises and releases"},
	{"only the holder releases", redisstore.Guard{Script: "apply", Text: "if fence > 0 and owner == ARGV[#ARGV] then", Instead: "if fence > 0 then"}, "nobody but the holder renews or releases"},
	{"a release frees the lease", redisstore.Guard{Script: "apply", Text: "call('DEL', KEYS[puts + 1])", Instead: ""}, "a lease is free as soon as it is released"},
	{"a release is announced", redisstore.Guard{Script: "apply", Text: "      table.insert(changed, KEYS[puts + 1])\n", Instead: ""}, "a subscriber is told of puts, raises and releases"},
	{"a full store still releases", redisstore.Guard{Script: "apply", Text: "local done, refusal = pcall(function()\n    for i = 1, puts do put(i) end\n  end)", Instead: "local done, refusal = true, nil\n  for i = 1, puts do put(i) end"}, "TestFullRedisReleasesLeases"},
	{"a put that was refused is an error", redisstore.Guard{Script: "apply", Text: "if not done then\n    error(refusal)", Instead: "if false then\n    error(refusal)"}, "TestFullRedisReleasesLeases"},

	{"a counter does not go back", redisstore.Guard{Script: "raise", Text: "math.max(before, tonumber(ARGV[1]))", Instead: "tonumber(ARGV[1])"}, "a counter only grows"},
	{"a counter is at least the floor", redisstore.Guard{Script: "raise", Text: "math.max(before, tonumber(ARGV[1]))", Instead: "before"}, "a counter only grows"},
	{"a counter is not too large", redisstore.Guard{Script: "raise", Text: "if tonumber(ARGV[2]) > MAX - count then", Instead: "if false then"}, "counters beyond the bounds are refused"},
	{"a counter that did not change is not announced", redisstore.Guard{Script: "raise", Text: "if count > before then", Instead: "if true then"}, "nobody is told of what did not change"},
	{"a counter is stored", redisstore.Guard{Script: "raise", Text: "call('SET', KEYS[1], text(count))", Instead: ""}, "a counter only grows"},
	{"a counter is announced", redisstore.Guard{Script: "raise", Text: "call('PUBLISH', ARGV[3], KEYS[1])", Instead: ""}, "a subscriber is told of puts, raises and releases"},
}

// TestRedisScripts_eachGuardIsNeeded removes each guard from the scripts and requires that
// its test fails.
func TestRedisScripts_eachGuardIsNeeded(t *testing.T) {
	t.Parallel()
	if os.Getenv("TOKENBROKER_LONG") == "" {
		t.Skip("takes a minute: make test-long")
	}
	redistest.Need(t, "redis-server")
	turns := make(chan struct{}, 4)
	for _, guard := range scriptGuards {
		t.Run(guard.name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			name := testName(guard.test)
			encoded, err := json.Marshal(guard.Guard)
			if err != nil {
				t.Fatal(err)
			}
			if out := runAgain(t, name, string(encoded)); !strings.Contains(out, "--- FAIL: "+name) || strings.Contains(out, "panic:") || strings.Contains(out, "compiling script") {
				t.Errorf("without the guard, %s does not fail:\n%s", name, out)
			}
		})
	}
	passed := map[string]bool{}
	for _, guard := range scriptGuards {
		passed[testName(guard.test)] = true
	}
	for name := range passed {
		t.Run("with all guards "+name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			if out := runAgain(t, name, ""); !strings.Contains(out, "--- PASS: "+name) {
				t.Errorf("with all guards, %s does not pass:\n%s", name, out)
			}
		})
	}
}

// TestRedisScripts_tableIsCurrent fails for a row whose text is not in the scripts.
func TestRedisScripts_tableIsCurrent(t *testing.T) {
	for _, guard := range scriptGuards {
		found := 0
		for name, source := range redisstore.Scripts() {
			if guard.Script != "" && guard.Script != name {
				continue
			}
			count := strings.Count(source, guard.Text)
			if count > 1 {
				t.Errorf("%s: the script %s has %d times %q", guard.name, name, count, guard.Text)
			}
			found += count
		}
		if found == 0 {
			t.Errorf("%s: no script has the text %q", guard.name, guard.Text)
		}
	}
}

// testName returns the name of a row's test, as go test prints it.
func testName(test string) string {
	if strings.HasPrefix(test, "Test") {
		return test
	}
	return "TestRedisScripts_suite/" + strings.ReplaceAll(test, " ", "_")
}

// runAgain runs one test in a process of its own and returns its output.
func runAgain(t *testing.T, name, guard string) string {
	t.Helper()
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.timeout=5m", "-test.run="+strings.Join(parts, "/"))
	command.Env = append(os.Environ(), redisstore.GuardVariable+"="+guard, suiteVariable+"=1")
	out, err := command.CombinedOutput()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(out)
}

const suiteVariable = "REDISSTORE_SUITE"

// TestRedisScripts_suite runs the conformance suite with one server, for
// TestRedisScripts_eachGuardIsNeeded. TestRedis runs it with all kinds of servers.
func TestRedisScripts_suite(t *testing.T) {
	if os.Getenv(suiteVariable) == "" {
		t.Skip("TestRedisScripts_eachGuardIsNeeded runs it")
	}
	server := redistest.Start(t, redistest.Options{})
	var opened atomic.Int32
	storetest.Run(t, storetest.Harness{
		Open: func(t *testing.T) storetest.Store {
			return suiteStore(t, redisstore.Config{Addresses: []string{server.Addr()}}, opened.Add(1))
		},
		Advance:  time.Sleep,
		RealTime: true,
	})
}
