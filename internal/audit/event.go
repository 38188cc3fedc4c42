package audit

import "time"

// Name is the kind of an event.
type Name string

// The names.
const (
	// Start and Stop are the start and the end of a replica. No Outcome.
	Start Name = "start"
	Stop  Name = "stop"
	// Reload is a change of the configuration: OK or Refused. Detail is the error of a
	// configuration that was refused.
	Reload Name = "reload"
	// Token is a request for a token: OK or Denied.
	Token Name = "token"
	// Verification is the verification of a presented token: Active, Rejected,
	// Undecided or Denied.
	Verification Name = "verification"
	// Admin is an action of an operator, see Action: OK, Denied, Refused or Failed.
	Admin Name = "admin"
	// Rotation is a step of a rotation, see Step, by an operator or by the broker itself:
	// OK or Failed.
	Rotation Name = "rotation"
	// Call is a call that was refused before its request was read: Unidentified or Limited.
	// Action is the full name of its method.
	Call Name = "call"
	// Connection is a connection that was refused before the first call: Unidentified if its
	// certificate is not valid, or Limited.
	Connection Name = "connection"
	// Lost counts lines that could not be written: Count, since Since. No Outcome.
	Lost Name = "lost"
)

// Outcome is the result of an event.
type Outcome string

// The outcomes.
const (
	// OK: it happened.
	OK Outcome = "ok"
	// Denied: the caller has no permission, or the object does not exist.
	Denied Outcome = "denied"
	// Refused: it did not happen, because the request is not valid.
	Refused Outcome = "refused"
	// Failed: it was tried, and may or may not have happened.
	Failed Outcome = "failed"
	// Active, Rejected and Undecided are results of verifications.
	Active    Outcome = "active"
	Rejected  Outcome = "rejected"
	Undecided Outcome = "undecided"
	// Unidentified: no configured caller matches.
	Unidentified Outcome = "unidentified"
	// Limited: the caller exceeded a limit.
	Limited Outcome = "limited"
)

// Event is an event. Zero fields are omitted from its line. No field ever contains a
// secret or a token; texts from callers are allowed and escaped. docs/audit.md describes
// the fields of a line.
type Event struct {
	Event   Name
	Outcome Outcome
	// Time is the time of the event. Zero: now.
	Time time.Time

	// Caller is the configured name of the caller. Empty for the broker's own work.
	Caller string
	// Peer is the address from which the call came.
	Peer string
	// Action is the action of an Admin event (an action of the policy), or the method of a
	// Call.
	Action string
	// RequestID is the request_id of a call that changes something.
	RequestID string
	// Reason is the reason of an error, and Rejection the reason for which VerifyToken
	// rejected a token: both are for programs. Detail is a sentence about an error.
	Reason, Rejection, Detail string
	// Comment is the reason that an operator gave for a change.
	Comment string

	// Client is the configured name of an OAuth client.
	Client string
	// Audiences, Resources and Scopes were requested, by the caller or by default. The token
	// has GrantedScopes.
	Audiences, Resources, Scopes, GrantedScopes []string
	// TokenSHA256 is the digest of the token. Zero: no token.
	TokenSHA256 [32]byte
	// ExpiresAt is the end of the token or of the revocation. IssuedBefore limits a
	// revocation.
	ExpiresAt, IssuedBefore time.Time
	// Origin is the place where the broker found the token: memory, shared or fetched.
	Origin string
	// Degraded: the token is valid, but its refresh is due and failed.
	Degraded bool

	// Issuer, Subject, ClientID and TokenID describe a verified token, the subject token of
	// a token that was given on behalf of its subject, or the target of a
	// revocation.
	Issuer, Subject, ClientID, TokenID string
	// SubjectType is the claim that replaces a missing sub. Empty: the token has a sub.
	SubjectType string
	// Actors are the actors (act) of the subject token, the latest first, at most four.
	Actors []string
	// Revocation is the ID of a revocation.
	Revocation string

	// SecretVersion is the ID of a version of the client's secret. Step is the step that was
	// taken or, with Failed, tried: stage, publish, prove, activate, retire, purge or
	// import.
	SecretVersion, Step string

	// Version is the version of the broker. ConfigSHA256 is the digest of its configuration
	// file; zero: unknown.
	Version      string
	ConfigSHA256 [32]byte

	// Count, if not zero, is the number of further acts of this kind since Since that have
	// no lines of their own.
	Count uint64
	Since time.Time
}

// refusal reports whether callers can cause the event as often as they like and get
// nothing for it. The number of such lines per second is limited.
func (e *Event) refusal() bool {
	switch e.Outcome {
	case Denied, Failed, Rejected, Undecided, Unidentified, Limited:
		return true
	case OK, Refused, Active:
		return false
	default:
		return false
	}
}
