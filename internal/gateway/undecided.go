package gateway

// UndecidedAs is the kind of response that Envoy gets if no decision about a request is
// possible.
type UndecidedAs int

// The kinds.
const (
	// AsError fails the call. Envoy applies failure_mode_allow and status_on_error, and
	// counts an error.
	AsError UndecidedAs = iota
	// AsErrorResponse is an error response with the status 503 for the requester. Envoy
	// supports it since version 1.37.
	AsErrorResponse
	// AsDenial denies the request with the status 503. Envoy counts a denial.
	AsDenial
)
