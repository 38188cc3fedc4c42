// Package redisinfo judges how a server of Redis keeps its data, by its reply to INFO.
package redisinfo

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cezzis/tokenbroker/internal/store"
)

// nearlyFull is the percentage of its memory above which Settings warns.
const nearlyFull = 90

// Server is a server's version, and its settings and state of memory, persistence and
// replication.
type Server struct {
	Name    string // as in the addresses; Parse leaves it empty
	Version string
	// Policy is its maxmemory-policy; Limit is its maxmemory in bytes, 0 if it has none.
	Policy      string
	Used, Limit int64
	AppendOnly  bool
	Replicas    int
	Evicted     int // keys, since its start
}

// Setting is a setting or a state of Redis that may lose data.
type Setting struct {
	// Fact is what was read, and Advice what to do about it.
	Fact, Advice string
	// Fatal: irreplaceable data may be lost, so the broker does not start.
	Fatal bool
}

func (s Setting) String() string { return "Redis: " + s.Fact + ": " + s.Advice }

// Parse reads the reply to INFO. Absent and unreadable fields are zero.
func Parse(text string) Server {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = value
	}
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(fields[name], 10, 64)
		return n
	}
	return Server{
		Version:    fields["redis_version"],
		Policy:     fields["maxmemory_policy"],
		Used:       number("used_memory"),
		Limit:      number("maxmemory"),
		AppendOnly: fields["aof_enabled"] == "1",
		Replicas:   int(number("connected_slaves")),
		Evicted:    int(number("evicted_keys")),
	}
}

// IsOlder compares versions; an unreadable version is not older.
func IsOlder(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	has, err := strconv.Atoi(first)
	hasMinor, err2 := strconv.Atoi(second)
	return err == nil && err2 == nil && (has < major || has == major && hasMinor < minor)
}

// Evicts reports whether the server may evict data without an expiry.
func (s *Server) Evicts() bool { return strings.HasPrefix(s.Policy, "allkeys-") }

// ReportsDisk reports whether the server has WAITAOF.
func (s *Server) ReportsDisk() bool { return !IsOlder(s.Version, 7, 2) }

// Settings returns the settings that may lose data. keepsSecrets: the only copy of some
// clients' secrets is in Redis.
func (s *Server) Settings(keepsSecrets bool) (all []Setting) {
	warn := func(fact, advice string) { all = append(all, Setting{Fact: fact, Advice: advice}) }
	switch {
	case s.Evicts() && keepsSecrets:
		all = append(all, Setting{
			Fact:   "maxmemory-policy " + s.Policy + " may evict the secrets of managed clients, which are nowhere else",
			Advice: "set it to volatile-ttl or volatile-lru, or keep the secrets in files", Fatal: true,
		})
	case s.Evicts():
		warn("maxmemory-policy "+s.Policy+" may evict data that must stay, such as the epochs that purges have raised", "set it to volatile-ttl or volatile-lru")
	case s.Policy == "noeviction" && s.Limit > 0:
		warn("with maxmemory-policy noeviction it refuses all writes once it is full", "set it to volatile-ttl or volatile-lru")
	}
	if used := s.percent(); used >= nearlyFull {
		warn(fmt.Sprintf("%d %% of its maxmemory is used", used), "raise it, or tokens and leases are evicted and fetched more than once")
	}
	if s.Evicted > 0 {
		warn(fmt.Sprintf("it has evicted %d keys since its start", s.Evicted), "raise maxmemory, or tokens are fetched more often than their lifetimes require")
	}
	switch {
	case s.AppendOnly:
	case keepsSecrets:
		warn("IT KEEPS NO APPEND-ONLY FILE, and the secrets of managed clients are nowhere else", "if it restarts while no broker runs they are lost; set appendonly yes, and keep what `broker secret export` writes")
	default:
		warn("it keeps no append-only file, so a restart may lose tokens and epochs", "tokens are fetched again, and epochs are restored by the replicas that hold them; set appendonly yes to keep both")
	}
	return all
}

// percent is the used part of the limit.
func (s *Server) percent() int64 {
	if s.Limit <= 0 {
		return 0
	}
	return 100 * s.Used / s.Limit
}

// Doubt returns the reason why a value may be lost although it is as safe as got, or "".
func (s *Server) Doubt(got store.Safety) string {
	switch {
	case s.Evicts():
		return "Redis may evict it, because its maxmemory-policy is " + s.Policy + ": set it to volatile-ttl or volatile-lru"
	case got.Disk:
		return ""
	case s.AppendOnly && !s.ReportsDisk():
		return "Redis writes it to its append-only file, but before version 7.2 does not report when it is on disk"
	case s.AppendOnly:
		return "Redis had not written it to its append-only file within a second"
	case got.Replicas > 0:
		return "Redis keeps no append-only file: if all its servers restart while no broker runs, it is lost; set appendonly yes"
	default:
		return "Redis keeps no append-only file and has no replica: if it restarts while no broker runs, it is lost; set appendonly yes"
	}
}
