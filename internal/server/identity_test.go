package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// rpcs calls every RPC that wants a caller, with questions about a client that
// exists and one that does not, and returns the errors by what was called.
func rpcs(t *testing.T, conn *grpc.ClientConn, header metadata.MD) map[string]error {
	t.Helper()
	found := map[string]error{}
	for _, method := range methods() {
		name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
		for _, client := range []string{"", "orders", "nobody"} {
			req := message(method.Input())
			if field := method.Input().Fields().ByName("client_name"); field != nil && client != "" { // it is about a client
				req.ProtoReflect().Set(field, protoreflect.ValueOfString(client))
			}
			found[name+" "+client] = callWith(t, conn, header, method, req)
		}
	}
	found["reflection"] = reflect(t, conn, header)
	if len(found) < 40 {
		t.Fatalf("only %d calls were made", len(found))
	}
	return found
}

func message(of protoreflect.MessageDescriptor) proto.Message {
	return must(protoregistry.GlobalTypes.FindMessageByName(of.FullName())).New().Interface()
}

func reflect(t *testing.T, conn *grpc.ClientConn, header metadata.MD) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), header), 20*time.Second)
	defer cancel()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	_, err = stream.Recv()
	return err
}

// stranger is somebody who is not let in.
type stranger struct {
	config *tls.Config
	header metadata.MD
	code   codes.Code
	says   string
	// refused is the reason by which a handshake is counted that fails.
	refused string
}

func bearer(tokens ...string) metadata.MD {
	header := metadata.MD{}
	for _, token := range tokens {
		header.Append("authorization", "Bearer "+token)
	}
	return header
}

func (w *world) theStrangers() map[string]stranger {
	now := time.Now()
	unidentified := func(config *tls.Config, header metadata.MD, says string) stranger {
		return stranger{config: config, header: header, code: codes.Unauthenticated, says: says}
	}
	refused := func(config *tls.Config, reason string) stranger {
		return stranger{config: config, code: codes.Unavailable, refused: reason}
	}
	listed := func(names ...string) *tls.Config { return w.with(w.ca, template(names...)) }
	old := &x509.Certificate{URIs: template(checkout).URIs, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}
	early := &x509.Certificate{URIs: template(checkout).URIs, NotBefore: now.Add(time.Hour)}
	forServers := &x509.Certificate{URIs: template(checkout).URIs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	shy := w.anonymous() // offers its certificate only to those who ask for one of its kind
	shy.Certificates = []tls.Certificate{must(w.strangers.Issue(template(checkout))).TLS()}
	good := w.jwt(nil)
	holder := must(w.ca.Issue(template("urn:example:other")))
	boundTo := func(config *tls.Config, cnf any) stranger {
		return unidentified(config, bearer(w.jwt(map[string]any{"cnf": cnf})), "bound to a key (cnf)")
	}
	thumbprint := jose.CertificateThumbprint(holder.Certificate())
	exactly := func(uri string) *tls.Config { // as it is written, which url.Parse would change
		scheme, rest, _ := strings.Cut(uri, ":")
		return w.with(w.ca, &x509.Certificate{URIs: []*url.URL{{Scheme: scheme, Opaque: rest}}})
	}
	authority := &x509.Certificate{URIs: template(checkout).URIs, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	signer := &x509.Certificate{URIs: template(checkout).URIs, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	return map[string]stranger{
		"an authority":                       unidentified(w.with(w.ca, authority), nil, "belongs to a certificate authority"),
		"an authority by its key usage":      unidentified(w.with(w.ca, signer), nil, "belongs to a certificate authority"),
		"an authority with a name of DNS":    unidentified(w.with(w.ca, &x509.Certificate{DNSNames: []string{gateway}, IsCA: true, BasicConstraintsValid: true}), nil, "belongs to a certificate authority"),
		"an authority, and a JWT that it is": unidentified(w.with(w.ca, authority), bearer(w.jwt(map[string]any{"sub": checkout})), "matches no caller"),
		"an empty fragment":                  unidentified(exactly(checkout+"#"), nil, "matches no caller"),
		"an empty query":                     unidentified(exactly(checkout+"?"), nil, "matches no caller"),
		"a scheme in capitals":               unidentified(exactly("SPIFFE"+strings.TrimPrefix(checkout, "spiffe")), nil, "matches no caller"),

		"a JWT bound to a certificate, without one":       boundTo(w.anonymous(), map[string]any{"x5t#S256": thumbprint}),
		"a JWT bound to a certificate, with another":      boundTo(listed("urn:example:other"), map[string]any{"x5t#S256": thumbprint}),
		"a JWT bound to a certificate and a DPoP key":     boundTo(presenting(w, holder), map[string]any{"x5t#S256": thumbprint, "jkt": "t"}),
		"a JWT bound to a certificate and something else": boundTo(presenting(w, holder), map[string]any{"x5t#S256": thumbprint, "kid": "k"}),
		"a JWT bound to a DPoP key":                       boundTo(presenting(w, holder), map[string]any{"jkt": thumbprint}),
		"a JWT bound to a kid":                            boundTo(presenting(w, holder), map[string]any{"kid": "k"}),
		"a JWT bound to nothing":                          boundTo(presenting(w, holder), map[string]any{}),
		"a JWT bound to null":                             unidentified(presenting(w, holder), bearer(w.jwt(map[string]any{"cnf": json.RawMessage("null")})), "its cnf is not one JSON object"),
		"a JWT bound to the certificate of an authority":  w.boundToAuthority(authority),

		"nobody": unidentified(w.anonymous(), nil, "the call has no proof of its caller"),

		"the wrong authority":              refused(w.with(w.strangers, template(checkout)), "unknown_authority"),
		"the wrong authority, not offered": unidentified(shy, nil, "the call has no proof of its caller"),
		"expired":                          refused(w.with(w.ca, old), "expired"),
		"not yet valid":                    refused(w.with(w.ca, early), "expired"),
		"for servers only":                 refused(w.with(w.ca, forServers), "bad_certificate"),

		"not listed":                   unidentified(listed("spiffe://example.com/ns/shop/sa/other"), nil, `(URI "spiffe://example.com/ns/shop/sa/other") matches no caller`),
		"no names but a common name":   unidentified(listed(), nil, "has neither a URI nor a DNS name"),
		"a path below":                 unidentified(listed(checkout+"/admin"), nil, "matches no caller"),
		"a slash more":                 unidentified(listed(checkout+"/"), nil, "matches no caller"),
		"another case":                 unidentified(listed("spiffe://example.com/ns/Shop/sa/checkout"), nil, "matches no caller"),
		"a longer trust domain":        unidentified(listed("spiffe://example.com.evil.org/ns/shop/sa/checkout"), nil, "matches no caller"),
		"another scheme":               unidentified(listed("https://example.com/ns/shop/sa/checkout"), nil, "matches no caller"),
		"a query":                      unidentified(listed(checkout+"?x=1"), nil, "matches no caller"),
		"two SPIFFE IDs":               unidentified(listed(checkout, "spiffe://example.com/ns/shop/sa/other"), nil, "matches no caller"),
		"a longer DNS name":            unidentified(listed(gateway+".evil.org"), nil, "matches no caller"),
		"a wildcard":                   unidentified(listed("*.example.com"), nil, "matches no caller"),
		"two callers at once":          unidentified(listed("urn:example:batch", "urn:example:night"), nil, "matches no caller"),
		"a SPIFFE ID as the DNS name":  unidentified(w.with(w.ca, &x509.Certificate{DNSNames: []string{"example.com"}}), nil, "matches no caller"),
		"a JWT for others":             unidentified(w.anonymous(), bearer(w.jwt(map[string]any{"aud": "https://other.example.com"})), "It must be for the audience"),
		"an expired JWT":               unidentified(w.anonymous(), bearer(w.jwt(map[string]any{"iat": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(-time.Hour).Unix()})), "expired"),
		"a JWT of nobody listed":       unidentified(w.anonymous(), bearer(w.jwt(map[string]any{"sub": robot + "2"})), fmt.Sprintf("subject %q of issuer %q matches no caller", robot+"2", issuer)),
		"a JWT of somebody else":       unidentified(w.anonymous(), bearer(w.jwt(map[string]any{"iss": "https://other.example.com"})), "not valid"),
		"a JWT that was tampered with": unidentified(w.anonymous(), bearer(tampered(good)), "not valid"),
		"an unsigned JWT":              unidentified(w.anonymous(), bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."), "not valid"),
		"an opaque token":              unidentified(w.anonymous(), bearer("0123456789abcdef0123456789abcdef"), "is not a JWT"),
		"the same JWT twice":           unidentified(w.anonymous(), bearer(good, good), "more than once"),
		"a good JWT and a bad one":     unidentified(w.anonymous(), bearer(good, "x"), "more than once"),
		"a password":                   unidentified(w.anonymous(), metadata.Pairs("authorization", "Basic cm9ib3Q6cm9ib3Q="), `is not "Bearer " followed by a JWT`),
		"spaces and no JWT":            unidentified(w.anonymous(), metadata.Pairs("authorization", "Bearer   "), `is not "Bearer " followed by a JWT`),
		"a JWT without its scheme":     unidentified(w.anonymous(), metadata.Pairs("authorization", good), `is not "Bearer " followed by a JWT`),
		"not listed, and a bad JWT":    unidentified(listed("urn:example:other"), bearer(tampered(good)), "not valid"),
	}
}

// presenting presents this certificate.
func presenting(w *world, pair *devca.Pair) *tls.Config {
	made := pair.TLS()
	config := w.anonymous()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &made, nil }
	return config
}

// boundToAuthority presents the certificate of an authority and a JWT that is bound to
// it: a certificate that identifies no caller proves nothing for one either.
func (w *world) boundToAuthority(like *x509.Certificate) stranger {
	pair := must(w.ca.Issue(like))
	jwt := w.jwt(map[string]any{"cnf": map[string]any{"x5t#S256": jose.CertificateThumbprint(pair.Certificate())}})
	return stranger{config: presenting(w, pair), header: bearer(jwt), code: codes.Unauthenticated, says: "bound to a key (cnf)"}
}

// tampered changes the first character of a JWT's signature.
func tampered(token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	other := "A"
	if token[at] == 'A' {
		other = "B"
	}
	return token[:at] + other + token[at+1:]
}

func withBatch() []policy.CallerConfig {
	return append(callersOfTheWorld(),
		policy.CallerConfig{Name: "caller-batch", Match: policy.Match{URISAN: "urn:example:batch"}},
		policy.CallerConfig{Name: "caller-night", Match: policy.Match{URISAN: "urn:example:night"}})
}

// Whoever is not a caller gets one status from every RPC, whatever it asks for, and
// learns nothing from it but how the broker sees it.
func TestUnidentifiedCallersGetOneError(t *testing.T) {
	w := newWorldOf(t, allowing(withBatch()...))
	learnt := []string{"orders", "abc", "caller-", "policy", secretCanary}
	for name, s := range w.theStrangers() {
		t.Run(name, func(t *testing.T) {
			before := w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": s.refused})
			conn := w.connect(s.config)
			var first *status.Status
			for rpc, err := range rpcs(t, conn, s.header) {
				told := status.Convert(err)
				if err == nil || told.Code() != s.code || !strings.Contains(told.Message(), s.says) {
					t.Fatalf("%s: %v", rpc, err)
				}
				if s.refused != "" {
					continue
				}
				if info := detail[*errdetails.ErrorInfo](err); info.GetReason() != apierror.ReasonUnidentified || info.GetDomain() != "tokenbroker" || len(info.GetMetadata()) > 0 {
					t.Errorf("%s: %v", rpc, info)
				}
				if first == nil {
					first = told
				}
				if diff := cmp.Diff(first.Proto(), told.Proto(), protocmp.Transform()); diff != "" {
					t.Errorf("%s is answered otherwise than another RPC:\n%s", rpc, diff)
				}
				for _, canary := range learnt {
					if strings.Contains(told.Message(), canary) {
						t.Errorf("%s tells %q: %v", rpc, canary, err)
					}
				}
			}
			if s.refused == "" {
				if got := must(healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})); got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
					t.Errorf("health: %v", got)
				}
				return
			}
			// The server counts and tells after the client has noticed.
			begun := time.Now()
			counted := func() bool {
				return w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": s.refused}) > before
			}
			told := func() bool { return strings.Contains(w.Log.String(), `"reason":"`+s.refused+`"`) }
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for ; !counted() || !told(); <-tick.C {
				if time.Since(begun) > time.Minute {
					t.Fatalf("a handshake that was refused is not counted as %s (%v), or the log does not tell of it: %s", s.refused, counted(), w.Log)
				}
			}
		})
	}
	if n := w.IdP.Requests(devidp.TokenPath); n > 0 {
		t.Errorf("the IdP was asked for %d tokens", n)
	}
}

// The other side of the table: who is a caller is not refused by any RPC.
func TestCallersAreIdentified(t *testing.T) {
	w := newWorld(t)
	holder := must(w.ca.Issue(template("urn:example:other")))
	bound := bearer(w.jwt(map[string]any{"cnf": map[string]any{"x5t#S256": jose.CertificateThumbprint(holder.Certificate())}}))
	for name, c := range map[string]struct {
		config *tls.Config
		header metadata.MD
	}{
		"by a JWT that is bound to the certificate": {presenting(w, holder), bound},
		"by a SPIFFE ID":                                {w.with(w.ca, template(checkout)), nil},
		"by a SPIFFE ID, beside a DNS name":             {w.with(w.ca, template(checkout, "pod-1.example.com")), nil},
		"by a DNS name":                                 {w.with(w.ca, template(gateway)), nil},
		"by a DNS name in another case":                 {w.with(w.ca, template("Gateway.Example.COM")), nil},
		"by a JWT":                                      {w.anonymous(), bearer(w.jwt(nil))},
		"by a JWT, its scheme in another case":          {w.anonymous(), metadata.Pairs("authorization", "bearer "+w.jwt(nil))},
		"by a JWT after several spaces":                 {w.anonymous(), metadata.Pairs("authorization", "Bearer   "+w.jwt(nil))},
		"by a JWT, with a certificate of nobody listed": {w.with(w.ca, template("urn:example:other")), bearer(w.jwt(nil))},
		"by a certificate, with a bad JWT":              {w.with(w.ca, template(checkout)), bearer("x")},
		"by a certificate of an intermediate authority": {w.with(must(w.ca.Below("between", time.Time{})), template(checkout)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			for rpc, err := range rpcs(t, w.connect(c.config), c.header) {
				if code := status.Code(err); slices.Contains([]codes.Code{codes.Unauthenticated, codes.Unavailable, codes.ResourceExhausted, codes.Internal}, code) {
					t.Errorf("%s: %v", rpc, err)
				}
			}
			ctx := metadata.NewOutgoingContext(t.Context(), c.header)
			if _, err := w.api(c.config).GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// What an issuer may leave out of the tokens that are verified, it may not leave out of
// those by which callers are recognised.
func TestCallerClaimsAreRequired(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		claims map[string]any
		cause  string
	}{
		"no sub, and the client_id of a caller's subject": {map[string]any{"sub": nil, "client_id": robot}, "has no sub"},
		"no sub and no client_id":                         {map[string]any{"sub": nil, "client_id": nil, "azp": robot, "scope": "read"}, "sub and client_id are missing"},
		"no aud":                                          {map[string]any{"aud": nil}, "names no audience"},
	} {
		t.Run(name, func(t *testing.T) {
			for rpc, err := range rpcs(t, w.connect(w.anonymous()), bearer(w.jwt(tt.claims))) {
				if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), tt.cause) {
					t.Errorf("%s: %v", rpc, err)
				}
			}
		})
	}
}

// The subject of a token without sub is marked, and so differs from a user's.
func TestVerifyTokenMarksTheSubjectOfAClient(t *testing.T) {
	w := newWorld(t)
	api := w.api(w.with(w.ca, template(checkout)))
	for name, tt := range map[string]struct {
		claims map[string]any
		want   tokenbrokerv1.SubjectType
	}{
		"a user":   {map[string]any{"sub": "app", "aud": audience, "client_id": "web"}, tokenbrokerv1.SubjectType_SUBJECT_TYPE_SUB},
		"a client": {map[string]any{"sub": nil, "aud": audience, "client_id": "app"}, tokenbrokerv1.SubjectType_SUBJECT_TYPE_CLIENT_ID},
	} {
		got, err := api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: w.jwt(tt.claims)})
		if err != nil || got.GetSubject() != "app" || got.GetSubjectType() != tt.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestRevokedJWTIdentifiesNoCaller(t *testing.T) {
	w := newWorld(t)
	operator := tokenbrokerv1.NewAdminServiceClient(w.connect(w.with(w.ca, template(checkout))))
	conn := w.connect(w.anonymous())
	header := bearer(w.jwt(map[string]any{"jti": "stolen"}))
	if err := rpcs(t, conn, header)["/tokenbroker.v1.TokenBrokerService/GetToken orders"]; err != nil {
		t.Fatal(err)
	}
	_, err := operator.RevokeTokens(t.Context(), &tokenbrokerv1.RevokeTokensRequest{RequestId: "1", Revocation: &tokenbrokerv1.Revocation{
		Issuer: issuer, Target: &tokenbrokerv1.Revocation_TokenId{TokenId: "stolen"}, ExpiresAt: inAnHour(), Reason: "test",
	}})
	if err != nil {
		t.Fatal(err)
	}
	for rpc, err := range rpcs(t, conn, header) {
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("%s: %v", rpc, err)
		}
	}
	if err := rpcs(t, conn, bearer(w.jwt(map[string]any{"jti": "another"})))["/tokenbroker.v1.TokenBrokerService/GetToken orders"]; err != nil {
		t.Errorf("another JWT of the same caller: %v", err)
	}
}

func TestBoundCallerPresentsNoOtherCredential(t *testing.T) {
	w := newWorldOf(t, allowing(append(callersOfTheWorld(), policy.CallerConfig{Name: "bound"})...), func(c *server.Config) { c.Bound.TCP = "bound" })
	for name, tt := range map[string]struct {
		config *tls.Config
		header metadata.MD
		code   codes.Code
	}{
		"nothing":                     {w.anonymous(), nil, codes.OK},
		"a certificate of nobody":     {w.with(w.ca, template("urn:example:other")), nil, codes.OK},
		"a bad JWT":                   {w.anonymous(), bearer("x"), codes.Unauthenticated},
		"a good JWT of nobody listed": {w.anonymous(), bearer(w.jwt(map[string]any{"sub": "x"})), codes.Unauthenticated},
	} {
		ctx := metadata.NewOutgoingContext(t.Context(), tt.header)
		if _, err := w.api(tt.config).GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); status.Code(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}
