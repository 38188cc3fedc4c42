package fleet

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// Digest is a SHA-256 hash.
type Digest [32]byte

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(d) {
		return fmt.Errorf("a digest of %d digits: it must have %d", len(text), hex.EncodedLen(len(d)))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Short returns the first digits, for people.
func (d Digest) Short() string { return hex.EncodeToString(d[:4]) }

// Cause is why something fails. It says what happened without quoting a server.
type Cause uint8

// The causes.
const (
	NoCause        Cause = iota
	Unknown              // not classified, or a cause that only a newer version has
	Unreachable          // the server did not respond, or responded with a server error
	Throttled            // the IdP limits the rate of requests
	SecretRefused        // the IdP refused the client's credentials
	RequestRefused       // the IdP accepted the credentials and refused the request
	Misconfigured        // the response is not that of such an endpoint
	ReadOnly             // the server is a replica
	OutOfMemory          // the server has reached its memory limit
	DiskFailed           // the server cannot write its data to disk
	FewReplicas          // the server has too few replicas to accept writes
	NoRights             // the user lacks a permission at the server
	causes
)

//nolint:gochecknoglobals // constants that Go cannot express as such
var (
	causeNames = [causes]string{
		"", "unknown", "unreachable", "throttled", "secret_refused", "request_refused", "misconfigured",
		"read_only", "out_of_memory", "disk_failed", "few_replicas", "no_rights",
	}
	stateNames    = [clientStates]string{"unknown", "idle", "ok", "failing", "refused", "throttled", "no_secret"}
	kindNames     = [storeKinds]string{"unknown", "memory", "bolt", "redis"}
	answerNames   = [answers]string{"unknown", "yes", "no"}
	obstacleNames = [obstacles]string{"unknown", "not_made", "not_shown", "not_accepted"}
	useNames      = [certificateUses]string{"unknown", "listener", "callers_ca", "client", "idp_ca"}
)

func (c Cause) String() string { return causeNames[c] }

// MarshalText implements encoding.TextMarshaler.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Cause) UnmarshalText(text []byte) error {
	*c = parsed(causeNames[:], string(text), Unknown)
	return nil
}

// ClientState is the result of a client's recent fetches.
type ClientState uint8

// The states. From ClientFailing on they are problems.
const (
	ClientUnknown   ClientState = iota
	ClientIdle                  // no token was requested yet
	ClientOK                    // the last fetch succeeded
	ClientFailing               // the last fetch failed
	ClientRefused               // the IdP refuses the client's credentials
	ClientThrottled             // the IdP throttles the client
	ClientNoSecret              // it has no secret yet
	clientStates
)

func (s ClientState) String() string { return stateNames[s] }

// MarshalText implements encoding.TextMarshaler.
func (s ClientState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *ClientState) UnmarshalText(text []byte) error {
	*s = parsed(stateNames[:], string(text), ClientUnknown)
	return nil
}

// StoreKind is the kind of a store.
type StoreKind uint8

// The kinds.
const (
	UnknownStore StoreKind = iota
	Memory
	Bolt
	Redis
	storeKinds
)

func (k StoreKind) String() string { return kindNames[k] }

// MarshalText implements encoding.TextMarshaler.
func (k StoreKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *StoreKind) UnmarshalText(text []byte) error {
	*k = parsed(kindNames[:], string(text), UnknownStore)
	return nil
}

// Answer is yes, no, or unknown.
type Answer uint8

// The answers.
const (
	NotKnown Answer = iota
	Yes
	No
	answers
)

func (a Answer) String() string { return answerNames[a] }

// MarshalText implements encoding.TextMarshaler.
func (a Answer) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Answer) UnmarshalText(text []byte) error {
	*a = parsed(answerNames[:], string(text), NotKnown)
	return nil
}

// CertificateUse is what a certificate is used for.
type CertificateUse uint8

// The uses.
const (
	UnknownUse      CertificateUse = iota
	ListenerUse                    // the broker presents it to callers
	CallerAuthority                // it issues the certificates of callers
	ClientUse                      // a client authenticates with it to its IdP
	IdPAuthority                   // it issues the certificates of IdPs
	certificateUses
)

func (u CertificateUse) String() string { return useNames[u] }

// MarshalText implements encoding.TextMarshaler.
func (u CertificateUse) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *CertificateUse) UnmarshalText(text []byte) error {
	*u = parsed(useNames[:], string(text), UnknownUse)
	return nil
}

// Obstacle is what a key that the broker makes waits for.
type Obstacle uint8

// The obstacles.
const (
	UnknownObstacle Obstacle = iota
	KeyNotMade               // no replica has made it
	KeyNotShown              // the document at the client's URL does not contain it
	KeyNotAccepted           // the IdP has issued no token for it
	obstacles
)

func (o Obstacle) String() string { return obstacleNames[o] }

// MarshalText implements encoding.TextMarshaler.
func (o Obstacle) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Obstacle) UnmarshalText(text []byte) error {
	*o = parsed(obstacleNames[:], string(text), UnknownObstacle)
	return nil
}

// parsed returns the value with this name, or unknown.
func parsed[E ~uint8](names []string, name string, unknown E) E {
	if at := slices.Index(names, name); at >= 0 {
		return E(at)
	}
	return unknown
}
