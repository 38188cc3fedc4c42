package caller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/audit"
)

// Reasons for a failed handshake: the values of a label.
const (
	unknownAuthority   = "unknown_authority" // the issuer of the client's certificate is not trusted
	certificateExpired = "expired"           // or not valid yet
	badCertificate     = "bad_certificate"
	refusedByClient    = "refused_by_client" // for example, it does not trust the broker's certificate
	notTLS             = "not_tls"
	protocolFailure    = "protocol" // mainly: no common version or cipher
	timedOut           = "timeout"
	hungUp             = "closed" // for example a probe that only connects
	tooManyConnections = "too_many_connections"
	tooManyFrames      = "too_many_frames" // outside of calls, mainly resets
)

// linesPerSecond is how many refused connections are logged per second and reason.
const linesPerSecond = 10

// handshakes counts the connections that failed. A client with a refused certificate
// makes no call that could be logged, so its failure shows here.
type handshakes struct {
	log    *slog.Logger
	audit  *audit.Log
	failed *prometheus.CounterVec
	lines  map[string]*PerSecond // by the reasons that are logged
}

func newHandshakes(log *slog.Logger, auditLog *audit.Log, registerer prometheus.Registerer) *handshakes {
	h := &handshakes{
		log:   log,
		audit: auditLog,
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_handshake_failures_total",
			Help: "Connections that were refused, closed or abandoned before the first call, by reason.",
		}, []string{"reason"}),
		lines: map[string]*PerSecond{},
	}
	for _, reason := range []string{unknownAuthority, certificateExpired, badCertificate, refusedByClient, tooManyConnections, tooManyFrames} {
		h.lines[reason] = &PerSecond{}
	}
	for _, reason := range []string{
		unknownAuthority, certificateExpired, badCertificate, refusedByClient, notTLS, protocolFailure, timedOut, hungUp, tooManyConnections, tooManyFrames,
	} {
		h.failed.WithLabelValues(reason) // visible before the first failure
	}
	if registerer != nil {
		registerer.MustRegister(h.failed)
	}
	return h
}

func (h *handshakes) count(conn net.Conn, err error) {
	presented := ""
	if refused, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(refused.UnverifiedCertificates) > 0 {
		presented = namesIn(identityIn(refused.UnverifiedCertificates[0]))
	}
	h.note(conn, reasonOf(err), err, presented)
}

// note counts a connection, and writes it to the audit log and the log if an operator
// may have to act.
func (h *handshakes) note(conn net.Conn, reason string, err error, presented string) {
	h.failed.WithLabelValues(reason).Inc()
	lines := h.lines[reason]
	if lines == nil {
		return
	}
	auditConnection(h.audit, conn.RemoteAddr(), reason, presented)
	if !lines.Admits(time.Now(), linesPerSecond) {
		return
	}
	attrs := []slog.Attr{slog.String("reason", reason), slog.String("from", conn.RemoteAddr().String()), slog.Any("error", err)}
	if presented != "" {
		attrs = append(attrs, slog.String("presented", presented))
	}
	h.log.LogAttrs(context.Background(), slog.LevelInfo, "a connection was refused", attrs...)
}

// cutOff counts a connection that is closed because of its client's frames.
func (h *handshakes) cutOff(conn net.Conn, from *connection) {
	presented := ""
	if len(from.presented) > 0 || from.identity.UID != nil {
		presented = namesIn(from.identity)
	}
	h.note(conn, tooManyFrames, errTooManyFrames, presented)
}

func reasonOf(err error) string {
	if errors.Is(err, errTooManyConnections) {
		return tooManyConnections
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return flawOf(err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return notTLS
	}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		return refusedByClient
	}
	if failed, ok := errors.AsType[net.Error](err); ok && failed.Timeout() {
		return timedOut
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return hungUp
	default:
		return protocolFailure
	}
}

// flawOf returns the reason why a client's certificate was refused.
func flawOf(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return unknownAuthority
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return certificateExpired
	}
	return badCertificate
}
