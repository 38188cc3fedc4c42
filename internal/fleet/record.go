// Package fleet shows how all replicas do: each publishes a record of its own status in
// the store, any replica reads them all, and one pure function derives the findings.
//
// A record cannot contain a secret, a token, a claim, the name of a caller or a text of an
// IdP: its types are numbers, times, closed enumerations, and names that the configuration
// file contains.
package fleet

import (
	"encoding/json"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/cezzis/tokenbroker/internal/escape"
)

// Bounds of a record.
const (
	// MaxSize is the largest encoded record in bytes. A healthy client takes about 160.
	MaxSize = 512 << 10
	// MaxName is the longest name in bytes; a longer one is cut.
	MaxName = 128
	// MaxList is the maximum number of servers, issuers and certificates, of each.
	MaxList = 128
	// MaxClients is the maximum number of clients. Clients with a problem come first.
	MaxClients = 4096
)

// form is the version of the encoded record. A newer broker may add members, which older
// ones ignore, and values of enumerations, which older ones read as Unknown. A change that
// older brokers would misread needs another form.
const form = 1

// ErrForm is the error of Decode for a record of another form, or for no record.
var ErrForm = errors.New("the record has a form that this version does not read")

var errTooLarge = errors.New("the status of this replica is too large, even without its clients")

// Name is a name from the configuration file: of a client, an issuer, a server of the
// store, a certificate. Nothing that a caller, a token or an IdP contains may become one.
type Name string

// MarshalText implements encoding.TextMarshaler. It cuts a name that is too long.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.clipped()), nil }

func (n Name) clipped() string {
	text := escape.Text(string(n))
	if len(text) <= MaxName {
		return text
	}
	end := MaxName
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// Record is the status of one replica, as that replica knows it.
type Record struct {
	Form    int     `json:"v"`
	Replica Replica `json:"replica"`
	Config  Config  `json:"config"`
	// Ring is nil if the store is not sealed.
	Ring        *Ring       `json:"ring,omitempty"`
	Revocations Revocations `json:"revocations"`
	Store       Store       `json:"store"`
	Issuers     []Issuer    `json:"issuers,omitempty"`
	Clients     []Client    `json:"clients,omitempty"`
	// Omitted is the number of clients that the bounds left out.
	Omitted      int           `json:"omitted,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
	// CertificatesFailing is since when a listener's new certificate could not be used.
	CertificatesFailing time.Time `json:"certificates_failing,omitzero"`
	Audit               Audit     `json:"audit"`
	Tracing             Tracing   `json:"tracing"`
}

// Replica identifies a process.
type Replica struct {
	// ID is unique for each process, and begins with the host's name.
	ID Name `json:"id"`
	// Host is the name of the host or container, which may be reused after a restart.
	Host    Name      `json:"host"`
	Version Name      `json:"version"`
	Started time.Time `json:"started"`
	// Written is the replica's clock when it wrote this.
	Written time.Time `json:"written"`
}

// Config is the configuration that the replica has applied.
type Config struct {
	Digest  Digest    `json:"digest"`
	Applied time.Time `json:"applied"`
	// Refused is since when the file contains a configuration that cannot be applied.
	Refused time.Time `json:"refused,omitzero"`
}

// Ring is the replica's ring of sealing keys, by the ids of its keys.
type Ring struct {
	Primary Name   `json:"primary"`
	IDs     []Name `json:"ids"`
	// Applied is when the replica read this ring.
	Applied time.Time `json:"applied,omitzero"`
	// Mismatch is since when the store's marker is that of another ring.
	Mismatch time.Time `json:"mismatch,omitzero"`
}

// Revocations is the state of the revocations in the replica's memory.
type Revocations struct {
	Count int `json:"count"`
	// Usable: they are loaded and can be used to judge tokens.
	Usable bool `json:"usable"`
	// Loaded is when they last matched those in the store. Zero: never.
	Loaded time.Time `json:"loaded,omitzero"`
}

// Store is the store and its health.
type Store struct {
	Kind    StoreKind `json:"kind"`
	Servers []Server  `json:"servers,omitempty"`
	// Durable reports whether the store keeps its data on disk.
	Durable Answer `json:"durable"`
	// Evicts reports whether the store may drop data that must stay.
	Evicts Answer `json:"evicts"`
	// KeepsSecrets: the only copy of some clients' secrets is in the store.
	KeepsSecrets bool `json:"keeps_secrets,omitempty"`
}

// Server is one server of a store.
type Server struct {
	Name Name `json:"name,omitempty"` // empty: the store has one server without a name
	// Reads and Writes report whether it serves them.
	Reads  bool `json:"reads"`
	Writes bool `json:"writes"`
	// ReadsSince and WritesSince are since when it does not serve them.
	ReadsSince  time.Time `json:"reads_since,omitzero"`
	WritesSince time.Time `json:"writes_since,omitzero"`
	// Written is since when it takes writes. Only the replica's own record has it.
	Written time.Time `json:"-"`
	// Cause is why it serves no reads or no writes.
	Cause Cause `json:"cause,omitzero"`
}

// Issuer is an issuer whose tokens are verified.
type Issuer struct {
	Name Name `json:"name"`
	Keys int  `json:"keys"`
	// Loaded is when its keys were last fetched. Zero: never.
	Loaded time.Time `json:"loaded,omitzero"`
	// MaxStale is how long keys are used that cannot be fetched again.
	MaxStale time.Duration `json:"max_stale,omitempty"`
	// Failure is why the last fetch failed. Zero: it succeeded.
	Failure Cause `json:"failure,omitzero"`
}

// Client is a client at an IdP.
type Client struct {
	Name  Name        `json:"name"`
	State ClientState `json:"state"`
	// Home is the client's issuer or the host of its token endpoint. It may be empty in a
	// client without a failure.
	Home Name `json:"home,omitempty"`
	// Success is when the IdP last issued a token.
	Success time.Time `json:"success,omitzero"`
	// Failed is when a fetch last failed, Failure is why, and Resolved whether a fetch has
	// succeeded since.
	Failed   time.Time `json:"failed,omitzero"`
	Failure  Cause     `json:"failure,omitzero"`
	Resolved bool      `json:"resolved,omitempty"`
	// Generation counts the changes of the client's secret; Changed is when the last was.
	Generation uint64    `json:"generation,omitempty"`
	Changed    time.Time `json:"changed,omitzero"`
	// SecretSince is since when the current version of the secret is current.
	SecretSince time.Time `json:"secret_since,omitzero"`
	// Fallback is since when another version than the current one obtains tokens.
	Fallback time.Time `json:"fallback,omitzero"`
	// Pending is since when a version waits to be activated.
	Pending time.Time `json:"pending,omitzero"`
	// PendingRefused is when the IdP last refused that version.
	PendingRefused time.Time `json:"pending_refused,omitzero"`
	// SourceFailing is since when the place where another program keeps the secret cannot be
	// read.
	SourceFailing time.Time `json:"source_failing,omitzero"`
	// Key is the delay of a key that the broker makes. Nil: the client has no such key, or
	// no step of it is due. Such a key is never Pending, because nobody must activate it.
	Key *Key `json:"key,omitempty"`
}

// Key is the delay of a key that the broker makes.
type Key struct {
	// Due is since when a step of the key is due.
	Due time.Time `json:"due"`
	// PublishBefore is how long a key is published before its use.
	PublishBefore time.Duration `json:"publish_before"`
	// Obstacle is what the key waits for.
	Obstacle Obstacle `json:"obstacle"`
}

// Overdue reports whether the step is late enough for a finding.
func (k *Key) Overdue(now time.Time) bool {
	return k != nil && now.Sub(k.Due) > min(KeyLimit, k.PublishBefore/KeyShare)
}

// Certificate is a certificate with its validity.
type Certificate struct {
	Use  CertificateUse `json:"use"`
	Name Name           `json:"name"`
	// Begins may be zero: unknown.
	Begins time.Time `json:"begins,omitzero"`
	Ends   time.Time `json:"ends"`
}

// Audit is the state of the audit log.
type Audit struct {
	On bool `json:"on"`
	// Failing is since when it cannot be written.
	Failing time.Time `json:"failing,omitzero"`
	// Lost counts the lines that were dropped since the start, LostAt is when the last was.
	Lost   uint64    `json:"lost,omitempty"`
	LostAt time.Time `json:"lost_at,omitzero"`
}

// Tracing is the state of the export of traces.
type Tracing struct {
	On bool `json:"on"`
	// Failing is since when the collector does not accept spans.
	Failing time.Time `json:"failing,omitzero"`
}

// Encode returns the record for the store, within the bounds. If it has too many clients,
// those without a problem are left out first, and counted in Omitted.
func (r *Record) Encode() ([]byte, error) {
	bounded := *r
	bounded.Form = form
	bounded.Store.Servers = clip(r.Store.Servers, MaxList)
	bounded.Issuers = clip(r.Issuers, MaxList)
	bounded.Certificates = clip(r.Certificates, MaxList)
	bounded.Clients = clip(slices.SortedStableFunc(slices.Values(r.Clients), troubledFirst), MaxClients)
	for {
		bounded.Omitted = r.Omitted + len(r.Clients) - len(bounded.Clients)
		data, err := json.Marshal(&bounded)
		if err != nil || len(data) <= MaxSize {
			return data, err
		}
		if len(bounded.Clients) == 0 {
			return nil, errTooLarge
		}
		bounded.Clients = clip(bounded.Clients, len(bounded.Clients)*3/4)
	}
}

func clip[T any](list []T, most int) []T { return list[:min(len(list), most)] }

func troubledFirst(a, b Client) int {
	switch {
	case a.troubled() == b.troubled():
		return 0
	case a.troubled():
		return -1
	default:
		return 1
	}
}

// troubled reports whether a finding may be about the client.
func (c *Client) troubled() bool {
	return c.State > ClientOK || !c.Fallback.IsZero() || !c.Pending.IsZero() || !c.SourceFailing.IsZero() || c.Key != nil
}

// Decode reads a record that Encode wrote, of this version of the broker or of another.
func Decode(data []byte) (*Record, error) {
	var r Record
	if json.Unmarshal(data, &r) != nil || r.Form != form {
		return nil, ErrForm
	}
	return &r, nil
}
