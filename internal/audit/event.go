package audit

import "time"

// Name says what an event is about.
type Name string

// The names.
const (
	// Start and Stop are those of a replica. No Outcome.
	Start Name = "start"
	Stop  Name = "stop"
	// Reload is another configuration: OK or Refused. Detail says what is wrong with
	// one that is refused.
	Reload Name = "reload"
	// Token is somebody's wish for a token: OK or Denied.
	Token Name = "token"
	// Verification is about a token that somebody presented: Active, Rejected,
	// Undecided or Denied.
	Verification Name = "verification"
	// Admin is what an operator asked for, by Action: OK, Denied or Failed.
	Admin Name = "admin"
	// Rotation is a step in the life of a client's secret, by Step, whether an
	// operator took it or the broker itself: OK or Failed.
	Rotation Name = "rotation"
	// Call is a call that was refused before anybody looked at what it asks for:
	// Unidentified or Limited. Action is the full name of its method.
	Call Name = "call"
	// Connection is one that was refused before the first call: Unidentified, for the
	// certificate that came is not good, or Limited.
	Connection Name = "connection"
	// Lost is how many lines could not be written: Count, since Since. No Outcome.
	Lost Name = "lost"
)

// Outcome says what became of it.
type Outcome string

// The outcomes.
const (
	// OK: it was done.
	OK Outcome = "ok"
	// Denied: the caller may not, or there is no such thing.
	Denied Outcome = "denied"
	// Refused: it is not done because of what is wrong with it.
	Refused Outcome = "refused"
	// Failed: it was tried, and may or may not have happened.
	Failed Outcome = "failed"
	// Active, Rejected and Undecided are answers to verifications.
	Active    Outcome = "active"
	Rejected  Outcome = "rejected"
	Undecided Outcome = "undecided"
	// Unidentified: nobody knows who called.
	Unidentified Outcome = "unidentified"
	// Limited: the caller asked for more at a time than it may.
	Limited Outcome = "limited"
)

// Event is something that happened. What does not apply is left zero, and out of
// the line. No field ever holds a secret or a token; texts that callers chose are
// allowed, and escaped. docs/audit.md describes the fields as they are in a line.
type Event struct {
	Event   Name
	Outcome Outcome
	// Time is when it happened. Zero: now.
	Time time.Time

	// Caller is the name of who asked, as the configuration has it; of the broker's
	// own work, empty.
	Caller string
	// Peer is the address that the call came from.
	Peer string
	// Action is what an Admin event is about (an action of the policy), or the
	// method of a Call.
	Action string
	// RequestID is the request_id of a call that changes something.
	RequestID string
	// Reason is the reason of an error, and Rejection the reason for which VerifyToken
	// rejected a token: both are for programs. Detail is a sentence about an error.
	Reason, Rejection, Detail string
	// Comment is the reason that an operator gave for a change.
	Comment string

	// Client is the name of an OAuth client of the configuration.
	Client string
	// Audiences, Resources and Scopes are those of the request, with its defaults;
	// GrantedScopes are those that the token has.
	Audiences, Resources, Scopes, GrantedScopes []string
	// TokenSHA256 is the digest of a token that was given or presented. Zero: none.
	TokenSHA256 [32]byte
	// ExpiresAt is when the token ends, or the revocation; IssuedBefore bounds a
	// revocation.
	ExpiresAt, IssuedBefore time.Time
	// Origin is where the broker found a token: memory, shared or fetched.
	Origin string
	// Degraded: the token is good, but a fresher one was due and not to be had.
	Degraded bool

	// Issuer, Subject, ClientID and TokenID are of a verified token, or of a
	// revocation.
	Issuer, Subject, ClientID, TokenID string
	// SubjectType is the claim that stands for a missing sub. Empty: none does.
	SubjectType string
	// Revocation is the ID of one.
	Revocation string

	// SecretVersion is the ID of a version of the client's secret, and Step the
	// step that was taken or, with Failed, tried: stage, prove, activate, retire, purge or
	// import.
	SecretVersion, Step string

	// Version is the broker's own, and ConfigSHA256 the digest of its configuration
	// file. Zero: none.
	Version      string
	ConfigSHA256 [32]byte

	// Count, if not zero, makes the line one that stands for so many further acts of
	// the kind, since Since, that have no lines of their own.
	Count uint64
	Since time.Time
}

// refusal reports whether the event is one that callers can cause as often as
// they like, and get nothing for: such lines are rationed.
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
