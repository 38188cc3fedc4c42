package redisstore

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/store"
)

// luaRead begins every script.
//
// call runs a command. A refusal ends the script, which then returns the refusal and the
// name of the command, the same in all versions of Redis: within scripts, some versions
// use another text, without the command. attempt runs the body of a script with this
// handling.
//
// held returns the text of a key, false if absent. Any error other than that of a key
// which holds no text, such as a missing permission, must end the script: taken for
// absence it would grant a lease to every replica.
//
// read returns the number and the bytes that a key holds; 0 and no bytes if it is
// absent, or has another format, as parseEntry does.
//
// append appends the entries of the keys from the first one to an answer: the text and
// the milliseconds left of each, both of the same value, which two commands would not
// guarantee.
//
// Numbers are floating point here, exact up to MaxNumber. Lua would write large ones
// with an exponent, so text formats them itself.
const luaRead = `
local MAX = 9007199254740991

local function refuse(command, answer)
  error({refusal = {err = answer.err .. ' (' .. command .. ')'}})
end

local function call(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    refuse(command, answer)
  end
  return answer
end

local function attempt(body)
  local done, result = pcall(body)
  if not done and type(result) == 'table' and result.refusal then
    return result.refusal
  elseif not done then
    error(result)
  end
  return result
end

local function held(key)
  local answer = redis.pcall('GET', key)
  if type(answer) == 'table' then
    if not string.find(answer.err, '^WRONGTYPE') then
      refuse('GET', answer)
    end
    return false
  end
  return answer
end

local function read(key)
  local digits, rest = string.match(held(key) or '', '^([1-9]%d*)(.*)$')
  if not digits or #digits > 16 or tonumber(digits) > MAX or string.find(rest, '^[^:]') then
    return 0, ''
  end
  return tonumber(digits), string.sub(rest, 2)
end

local function append(answer, first)
  for i = first, #KEYS do
    local value = held(KEYS[i])
    table.insert(answer, value)
    table.insert(answer, value and call('PTTL', KEYS[i]))
  end
  return answer
end

local function text(number)
  return string.format('%.0f', number)
end
`

// testLease begins the scripts for leases. A Redis that is short of memory
// first evicts keys that expire soon, and an evicted lease lets several replicas do the
// same work. So the key of a lease lives a day longer than the lease, which is over when
// at most that day is left.
//
// lease returns the fence and the owner that a key holds, and whether the lease lasts; 0
// and no owner if it holds no lease.
const testLease = luaRead + `
local SPARE = 86400000

local function lease(key)
  local digits, owner = string.match(held(key) or '', '^L([1-9]%d*):(.*)$')
  if not digits or #digits > 16 or tonumber(digits) > MAX then
    return 0, '', false
  end
  return tonumber(digits), owner, call('PTTL', key) > SPARE
end

local function lasting(millis)
  return text(tonumber(millis) + SPARE)
end
`

// luaGet has the keys to read, and returns their entries.
const luaGet = luaRead + `
return attempt(function()
  return append({}, 1)
end)
`

// luaAcquire has the keys lease and counter, then keys to read, and the arguments owner,
// milliseconds and floor. It returns the fence, and then the entries of the keys. The
// fence is 0 if another owner holds the lease, for at most these milliseconds, and -1 if
// the counter is exhausted.
const luaAcquire = testLease + `
local function claim()
  local fence, owner, lasts = lease(KEYS[1])
  if lasts then
    if owner ~= ARGV[1] then
      if call('PTTL', KEYS[1]) > tonumber(lasting(ARGV[2])) then
        call('PEXPIRE', KEYS[1], lasting(ARGV[2]))
      end
      return 0
    end
    call('PEXPIRE', KEYS[1], lasting(ARGV[2]))
    return fence
  end
  fence = math.max(read(KEYS[2]), tonumber(ARGV[3])) + 1
  if fence > MAX then
    return -1
  end
  call('SET', KEYS[2], text(fence))
  call('SET', KEYS[1], 'L' .. text(fence) .. ':' .. ARGV[1], 'PX', lasting(ARGV[2]))
  return fence
end

return attempt(function()
  return append({claim()}, 3)
end)
`

// luaRenew has the key lease and the arguments owner and milliseconds.
const luaRenew = testLease + `
return attempt(function()
  local fence, owner, lasts = lease(KEYS[1])
  if not lasts or owner ~= ARGV[1] then
    return 0
  end
  call('PEXPIRE', KEYS[1], lasting(ARGV[2]))
  return 1
end)
`

// luaApply has the keys of the puts and, if there is a lease to release, its key. Its
// arguments are the channel, empty for a quiet change; number, milliseconds (0: for ever) and text of each put;
// and the owner of the lease.
//
// A Redis that is out of memory refuses the puts, but not the release: replicas that
// wait for the lease need not wait for its end.
//
//nolint:dupword // Lua ends blocks so
const luaApply = testLease + `
return attempt(function()
  local puts = math.floor((#ARGV - 1) / 3)
  local applied, changed = {}, {}
  local function put(i)
    local key, number, millis, value = KEYS[i], ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
    applied[i] = 0
    if tonumber(number) > read(key) then
      if millis == '0' then
        call('SET', key, value)
      else
        call('SET', key, value, 'PX', millis)
      end
      applied[i] = 1
      table.insert(changed, key)
    end
  end
  local done, refusal = pcall(function()
    for i = 1, puts do put(i) end
  end)
  if #KEYS > puts then
    local fence, owner = lease(KEYS[puts + 1])
    if fence > 0 and owner == ARGV[#ARGV] then
      call('DEL', KEYS[puts + 1])
      table.insert(changed, KEYS[puts + 1])
    end
  end
  if ARGV[1] ~= '' then
    for _, key in ipairs(changed) do
      call('PUBLISH', ARGV[1], key)
    end
  end
  if not done then
    error(refusal)
  end
  return applied
end)
`

// luaRaise has the key of a counter and the arguments floor, by and channel.
const luaRaise = luaRead + `
return attempt(function()
  local before = read(KEYS[1])
  local count = math.max(before, tonumber(ARGV[1]))
  if tonumber(ARGV[2]) > MAX - count then
    return -1
  end
  count = count + tonumber(ARGV[2])
  if count > before then
    call('SET', KEYS[1], text(count))
    call('PUBLISH', ARGV[3], KEYS[1])
  end
  return count
end)
`

// luaProbe runs the commands that the other scripts run, on a dedicated key. Its
// argument is the channel; without it, the script publishes nothing.
const luaProbe = luaRead + `
return attempt(function()
  held(KEYS[1])
  call('PTTL', KEYS[1])
  call('SET', KEYS[1], '1', 'PX', '10000')
  call('PEXPIRE', KEYS[1], '10000')
  call('DEL', KEYS[1])
  if ARGV[1] ~= '' then
    call('PUBLISH', ARGV[1], '')
  end
  return 1
end)
`

// scripts are run by their hash, and sent whole if Redis does not know them: at
// first, after a failover, after SCRIPT FLUSH.
type scripts struct {
	get, acquire, renew, apply, raise, probe script
}

func newScripts() scripts {
	return scripts{
		get:     newScript(luaGet),
		acquire: newScript(luaAcquire),
		renew:   newScript(luaRenew),
		apply:   newScript(luaApply),
		raise:   newScript(luaRaise),
		probe:   newScript(luaProbe),
	}
}

type script struct{ source, hash string }

func newScript(source string) script {
	return script{source: source, hash: redis.NewScript(source).Hash()}
}

// scriptCommand makes the command that runs a script.
type scriptCommand func(ctx context.Context, names []string, args ...any) *redis.Cmd

func (s script) byHash(ctx context.Context, names []string, args ...any) *redis.Cmd {
	return eval(ctx, "evalsha", s.hash, names, args)
}

func (s script) whole(ctx context.Context, names []string, args ...any) *redis.Cmd {
	return eval(ctx, "eval", s.source, names, args)
}

func eval(ctx context.Context, command, script string, names []string, args []any) *redis.Cmd {
	all := make([]any, 0, 3+len(names)+len(args))
	all = append(all, command, script, len(names))
	for _, name := range names {
		all = append(all, name)
	}
	cmd := redis.NewCmd(ctx, append(all, args...)...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// unrepeated is a command that the client of a Cluster does not repeat if it got no
// response: if the first attempt succeeded, the second would raise a counter again, or
// find its own put there already and report that it was not applied.
type unrepeated struct{ *redis.Cmd }

// NoRetry keeps the client from repeating it.
func (unrepeated) NoRetry() bool { return true }

// millis rounds up: no lifetime is 0, which means for ever.
func millis(ttl time.Duration) int64 {
	return int64((ttl-1)/time.Millisecond) + min(1, int64(ttl))
}

func encodeValue(put store.Put) []byte {
	text := make([]byte, 0, 17+len(put.Value))
	text = strconv.AppendUint(text, put.Number, 10)
	text = append(text, ':')
	return append(text, put.Value...)
}

// parseEntry parses the text of a key, with the milliseconds left of it, negative if it
// does not expire. A text that the scripts would not have written gives the zero Entry.
func parseEntry(text string, left int64) store.Entry {
	digits, value, isValue := strings.Cut(text, ":")
	number, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || number > store.MaxNumber || digits[0] == '0' {
		return store.Entry{}
	}
	if !isValue {
		return store.Entry{Number: number}
	}
	entry := store.Entry{Number: number, Value: []byte(value)}
	if left >= 0 && left < int64(math.MaxInt64/time.Millisecond) {
		entry.TTL = max(1, time.Duration(left)*time.Millisecond) // 0 would mean for ever
	}
	return entry
}

// parseEntries parses the entries of n keys.
func parseEntries(answer []any, n int) ([]store.Entry, error) {
	if len(answer) != 2*n {
		return nil, errResponse
	}
	entries := make([]store.Entry, n)
	for i := range entries {
		text, _ := answer[2*i].(string) // nil: the key is absent
		left, _ := answer[2*i+1].(int64)
		entries[i] = parseEntry(text, left)
	}
	return entries, nil
}

// parseClaim parses the result of luaAcquire that read n keys.
func parseClaim(answer []any, n int) (fence int64, entries []store.Entry, err error) {
	if len(answer) == 0 {
		return 0, nil, errResponse
	}
	fence, isNumber := answer[0].(int64)
	if !isNumber {
		return 0, nil, errResponse
	}
	entries, err = parseEntries(answer[1:], n)
	return fence, entries, err
}
