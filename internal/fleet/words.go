package fleet

import (
	"fmt"
	"time"
)

//nolint:gochecknoglobals // constants that Go cannot express as such
var (
	// sentences say in words why something fails.
	sentences = [causes]string{
		NoCause:        "",
		Unknown:        "the cause is in its log",
		Unreachable:    "it did not respond, or reported an error of its own",
		Throttled:      "it limits the rate of requests",
		SecretRefused:  "it refuses the client's credentials",
		RequestRefused: "it refuses the request for this audience or these scopes",
		Misconfigured:  "its response is not that of such an endpoint",
		ReadOnly:       "the server is a replica",
		OutOfMemory:    "it is out of memory",
		DiskFailed:     "it cannot save its data",
		FewReplicas:    "it has too few replicas",
		NoRights:       "the broker's user lacks a permission",
	}
	waiting = [obstacles]string{
		UnknownObstacle: "the log of the replica says why",
		KeyNotMade:      "no replica has made the next one",
		KeyNotShown:     "the document at its URL does not contain the next one",
		KeyNotAccepted:  "the IdP has issued no token for the next one",
	}
	certificates = [certificateUses]string{
		UnknownUse:      "The certificate",
		ListenerUse:     "The broker's own certificate",
		CallerAuthority: "The certificate authority of callers",
		ClientUse:       "The certificate of client",
		IdPAuthority:    "The certificate authority of IdPs in",
	}
)

// Sentence says in words why something fails; empty for NoCause.
func (c Cause) Sentence() string { return sentences[c] }

// why returns the cause as the end of a sentence.
func why(c Cause) string {
	if c == NoCause {
		return ""
	}
	return " (" + sentences[c] + ")"
}

// named names a server of the store at the beginning of a sentence.
func (s *Store) named(server *Server) string {
	name := "The store"
	if s.Kind == Redis {
		name = "Redis"
	}
	if server.Name == "" {
		return name
	}
	return name + " at " + string(server.Name)
}

// Count returns the number with the matching words.
func Count[N int | uint64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Span writes a duration as people do, in the largest unit of which there are two: 40s,
// 12m, 3h, 9d.
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/day)
	}
}
