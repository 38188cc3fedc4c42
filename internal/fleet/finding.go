package fleet

import (
	"time"
)

// Severity is how urgent a finding is.
type Severity int

// The severities.
const (
	// Warning: redundancy is lost, or something will fail later.
	Warning Severity = iota + 1
	// Critical: callers get errors, decisions of operators have no effect, or both are near.
	Critical
)

func (s Severity) String() string {
	if s == Critical {
		return "critical"
	}
	return "warning"
}

// Finding is something that an operator should look at.
type Finding struct {
	Severity Severity
	// ID is stable: alerts and the runbook refer to it.
	ID string
	// Subject is the client, issuer, certificate or server that it is about; empty: the
	// fleet.
	Subject Name
	// Replicas are those that report it, this one first. Empty: it follows from the
	// comparison of several.
	Replicas []Name
	// Message is a sentence for people.
	Message string
	// Since is when it began, by the clock of this replica, as exactly as is known.
	Since time.Time
	// Runbook is the anchor in the runbook.
	Runbook string
	// Action says what to do.
	Action string
}

// The ids of findings, which are also their anchors in the runbook.
const (
	StoreAway      = "store-away"
	StoreShardAway = "store-shard-away"
	StoreReadOnly  = "store-read-only"
	StoreFull      = "store-full"
	StoreRefuses   = "store-refuses-writes"
	StoreEvicts    = "store-evicts"
	StoreVolatile  = "store-not-durable"

	IdPDown        = "idp-down"
	IdPRefuses     = "idp-refuses"
	IdPThrottles   = "idp-throttles"
	SecretInvalid  = "secret-refused"
	SecretMissing  = "secret-missing"
	SecretFallback = "secret-fallback"
	SecretPending  = "secret-pending"
	SecretsDiffer  = "secrets-differ"
	SourceFailing  = "secret-source-failing"
	KeyOverdue     = "key-overdue"

	RingDiffers       = "ring-differs"
	RingRollout       = "ring-rollout"
	ClockDiffers      = "clock-differs"
	ConfigDiffers     = "config-differs"
	ConfigRefused     = "config-refused"
	VersionsDiffer    = "versions-differ"
	ReplicaLost       = "replica-lost"
	ReplicaUnreadable = "replica-unreadable"

	CertificateEnding   = "certificate-ending"
	CertificateEnded    = "certificate-ended"
	CertificateRejected = "certificate-rejected"
	AuditFailing        = "audit-failing"
	AuditLost           = "audit-lost"
	TracingFailing      = "tracing-failing"

	RevocationsNotLoaded = "revocations-not-loaded"
	RevocationsOld       = "revocations-old"
	KeysOld              = "issuer-keys-old"
	KeysUnusable         = "issuer-keys-unusable"
)

// The thresholds of the findings. All others have none: they are reported at once.
const (
	// ClockLimit is the largest difference between the clocks of two replicas.
	ClockLimit = 10 * time.Second
	// ConfigSettle, RingSettle, VersionSettle and SecretsSettle are how long replicas may
	// differ after the newest change, so that a rollout is no finding.
	ConfigSettle  = 2 * time.Minute
	RingSettle    = 10 * time.Minute
	VersionSettle = 15 * time.Minute
	SecretsSettle = time.Minute
	// StartGrace is how long a replica that has started may load revocations and keys.
	StartGrace = 30 * time.Second
	// RevocationsLimit is the age of the revocations since they last matched the store.
	RevocationsLimit = time.Minute
	// KeysLimit is the age of an issuer's keys that cannot be fetched again.
	KeysLimit = 30 * time.Minute
	// PendingLimit is how long a version of a secret may wait for its activation.
	PendingLimit = time.Hour
	// KeyLimit is how long a step of a key that the broker makes may be due, unless a share
	// (KeyShare) of the time for which a key is published before its use is shorter.
	KeyLimit = time.Hour
	KeyShare = 4
	// LostMemory is how long lost lines of the audit log are reported.
	LostMemory = time.Hour
	// CertificateLimit is the time before the end of a certificate, unless a fifth of its
	// life (CertificateShare) is shorter.
	CertificateLimit = 7 * 24 * time.Hour
	CertificateShare = 5
)

// rule is the constant part of a finding.
type rule struct {
	severity Severity
	action   string
}

//nolint:gochecknoglobals // a constant that Go cannot express as such
var rules = map[string]rule{
	StoreAway:      {Critical, "Check that the store runs and that the replicas can connect to it. Tokens stay available; purges, revocations and rotations fail until it is back."},
	StoreShardAway: {Critical, "Check this server of the store and its failover. Clients whose keys are on other servers are not affected."},
	StoreReadOnly:  {Critical, "Give the address of the master, or finish the failover. Tokens stay available; purges, revocations and rotations fail until then."},
	StoreFull:      {Critical, "Raise maxmemory of Redis, or remove other data from it. Tokens stay available; purges, revocations and rotations fail until then."},
	StoreRefuses:   {Critical, "Correct the cause: the log of Redis and that of the broker name it. Tokens stay available; purges, revocations and rotations fail until then."},
	StoreEvicts:    {Warning, "Set maxmemory-policy of Redis to volatile-ttl or volatile-lru."},
	StoreVolatile:  {Warning, "Set appendonly yes in Redis, and keep what `broker secret export` writes."},

	IdPDown:        {Critical, "Check the IdP, and the network and proxies on the way to it. The broker retries by itself; cached tokens serve until they expire."},
	IdPRefuses:     {Critical, "Compare the client's audience, scopes and token URL with its registration at the IdP. `broker clients NAME` shows the error."},
	IdPThrottles:   {Warning, "Check that no other program uses this client, and raise its limit at the IdP. The broker retries by itself."},
	SecretInvalid:  {Critical, "Give the client the secret that the IdP expects: `broker secret rotate`, or replace the file. Do not retry by hand: the IdP may lock the client."},
	SecretMissing:  {Critical, "Set the secret with `broker secret rotate`."},
	SecretFallback: {Warning, "The IdP refuses the current version: rotate again, or roll back, before the version in use ends."},
	SecretPending:  {Warning, "Activate the pending version, or retire it."},
	SecretsDiffer:  {Warning, "Check that the replica named can read the store."},
	SourceFailing:  {Warning, "Check the command, or Vault and the broker's login there: the log of that replica names the error. The value read before stays in use."},
	KeyOverdue:     {Warning, "`broker key list NAME` shows the URL and what fails. Publish the document there, and check that the IdP reads that URL. The key in use stays until the new one works."},

	RingDiffers:       {Critical, "Give all replicas the same file of sealing keys, and start those again that had another."},
	RingRollout:       {Warning, "Give all replicas the same file of sealing keys before the next change of it: the broker reads the file without a restart."},
	ClockDiffers:      {Critical, "Correct the clock, and check NTP on that host. Tokens and shared data expire early or late until then."},
	ConfigDiffers:     {Warning, "Give all replicas the same configuration file. Sections that cannot be reloaded need a restart."},
	ConfigRefused:     {Warning, "Correct the file: `broker check-config FILE` shows the errors. The replica runs the configuration from before."},
	VersionsDiffer:    {Warning, "Finish the rollout, or take it back."},
	ReplicaLost:       {Warning, "Check why the process ended or lost the store: its log, its restarts, its memory limit."},
	ReplicaUnreadable: {Warning, "Check the log of that replica, and whether its version matches the others."},

	CertificateEnding:   {Warning, "Renew the certificate. The broker reads the new file without a restart."},
	CertificateEnded:    {Critical, "Renew the certificate now. The broker reads the new file without a restart."},
	CertificateRejected: {Warning, "Correct the files of the listener's certificate: the log names the error. The one from before is served until it expires."},
	AuditFailing:        {Critical, "Make room on the disk of the audit log, or correct its permissions. With when_full: refuse, callers get errors."},
	AuditLost:           {Warning, "Find out why the audit log could not be written: the log of that time says it. A line with the event \"lost\" stands in place of those lines."},
	TracingFailing:      {Warning, "Check the trace collector. Spans are dropped until it responds; nothing else is affected."},

	RevocationsNotLoaded: {Critical, "Check that the replica can read the store and has the right sealing keys: it accepts no token until then."},
	RevocationsOld:       {Warning, "Check that the replica can read the store: new revocations do not reach it."},
	KeysOld:              {Warning, "Check the issuer's JWKS URL. Its tokens are verified with the keys from before until max_stale has passed."},
	KeysUnusable:         {Critical, "Check the issuer's JWKS URL: its tokens cannot be verified."},
}
