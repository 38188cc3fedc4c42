// Package tokenkeys has the keys of a client's state in the store.
//
// The keys are keyed hashes, because keys appear in the logs of databases, which must not
// reveal the clients' names and requests. All keys of a client share a hash tag, so that
// one script may use several.
package tokenkeys

import (
	"crypto/sha256"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// Client has the keys of a client's own state. The epoch, the fences and the secrets
// belong to its name, for as long as a client has that name; the rest belongs to its
// configuration, so that replicas with different configurations do not adopt each other's
// failures.
type Client struct {
	Tag         string
	Config      string // a name of the configuration
	Epoch       string // counter: a purge raises it
	Fences      string // counter: numbers the client's leases
	Secrets     string // the history of its secrets
	Failure     string // throttling
	Proof       string // the secret version that was the last to obtain a token
	Probe       string // lease of the fetch that tries an unproven secret
	LastFailure string // the last failure, for operators
	Making      string // lease of the replica that makes and publishes the client's key
	Supply      string // lease of the replica that reads the source of its secret
}

// Of returns the keys of the client with this name and this fingerprint of its
// configuration.
func Of(mac secret.MAC, name string, fingerprint [sha256.Size]byte) Client {
	tag := "{" + secret.Name(mac, "client", []byte(name)) + "}"
	config := secret.Name(mac, "config", fingerprint[:])
	return Client{
		Tag:         tag,
		Config:      config,
		Epoch:       tag + "epoch",
		Fences:      tag + "fences",
		Secrets:     tag + "secrets",
		Failure:     tag + config + ":trouble",
		Proof:       tag + config + ":proved",
		Probe:       tag + config + ":probe",
		LastFailure: tag + config + ":failed",
		Making:      tag + "making",
		Supply:      tag + "supply",
	}
}

// Refusals is the key of the refusals of one version of the secret.
func (k Client) Refusals(version string) string { return k.Tag + k.Config + ":refused:" + version }

// Purge is the key of the record of one purge request.
func (k Client) Purge(request string) string { return k.Tag + "purge:" + request }
