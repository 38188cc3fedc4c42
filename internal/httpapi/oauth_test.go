package httpapi_test

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apitest"
)

const (
	tokenPath      = "/oauth2/token"
	introspectPath = "/oauth2/introspect"
	jwtBearer      = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

func basicAuth(id, secret string) http.Header {
	return http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))}}
}

// with returns a form.
func with(pairs ...string) url.Values {
	form := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		form.Add(pair[0], pair[1])
	}
	return form
}

func TestTokenEndpoint_eachAuthentication(t *testing.T) {
	f := serve(t, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	grant := []string{"grant_type", "client_credentials"}
	named := slices.Concat(grant, []string{"client_id", "orders"})
	for name, tt := range map[string]struct {
		header http.Header
		form   url.Values
	}{
		"Bearer":                {bearer(jwt), with(named...)},
		"Bearer, spaces":        {http.Header{"Authorization": {"Bearer   " + jwt}}, with(named...)},
		"Basic, spaces":         {http.Header{"Authorization": {strings.Replace(basicAuth("orders", jwt).Get("Authorization"), " ", "   ", 1)}}, with(grant...)},
		"client_assertion":      {nil, with(slices.Concat(named, []string{"client_assertion_type", jwtBearer, "client_assertion", jwt})...)},
		"client_secret_basic":   {basicAuth("orders", jwt), with(grant...)},
		"client_secret_post":    {nil, with(slices.Concat(named, []string{"client_secret", jwt})...)},
		"scope and audience":    {bearer(jwt), with(slices.Concat(named, []string{"scope", "read", "audience", apitest.Audience})...)},
		"parameters of nothing": {bearer(jwt), with(slices.Concat(named, []string{"scope", "", "audience", "", "unknown", "x"})...)},
	} {
		got := f.post(t, tokenPath, tt.header, tt.form)
		if got.status != 200 || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Pragma") != "no-cache" || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %s", name, got.status, got.header, got.body)
			continue
		}
		answer := got.json(t)
		life, _ := answer["expires_in"].(float64)
		if text, _ := answer["access_token"].(string); len(text) < 100 || answer["token_type"] != "Bearer" || life < 3500 || life > 3600 {
			t.Errorf("%s: %d bytes, type %v, life %v", name, len(text), answer["token_type"], life)
		}
		if scope := answer["scope"]; scope != "read write" && (name != "scope and audience" || scope != "read") {
			t.Errorf("%s: scope %v", name, scope)
		}
	}
	if n := f.IdP.Requests("/token"); n != 2 {
		t.Errorf("%d fetches, want one for each of the two questions", n)
	}
}

func TestTokenEndpoint_errorsOfRFC6749(t *testing.T) {
	f := serve(t, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	grant := with("grant_type", "client_credentials", "client_id", "orders")
	// What the shop may have is in memory when others ask for it.
	if got := f.post(t, tokenPath, bearer(jwt), grant); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	and := func(pairs ...string) url.Values {
		form := with(pairs...)
		for name, values := range grant {
			if _, ok := form[name]; !ok {
				form[name] = values
			}
		}
		return form
	}
	for name, tt := range map[string]struct {
		header http.Header
		form   url.Values
		status int
		code   string
	}{
		"nobody":                     {nil, grant, 401, "invalid_client"},
		"a secret that is no JWT":    {basicAuth("orders", "s3cr3t"), with("grant_type", "client_credentials"), 401, "invalid_client"},
		"an expired JWT":             {bearer(f.Token(map[string]any{"sub": apitest.Shop, "aud": "tokenbroker", "exp": time.Now().Add(-time.Hour).Unix()})), grant, 401, "invalid_client"},
		"a JWT for another audience": {bearer(f.Token(map[string]any{"sub": apitest.Shop})), grant, 401, "invalid_client"},
		"nobody who is configured":   {bearer(f.CallerJWT("stranger")), grant, 401, "invalid_client"},
		"another scheme":             {http.Header{"Authorization": {"Digest x"}}, grant, 401, "invalid_client"},
		"broken Basic":               {http.Header{"Authorization": {"Basic !"}}, grant, 400, "invalid_request"},
		"two headers":                {http.Header{"Authorization": {"Bearer " + jwt, "Bearer " + jwt}}, grant, 400, "invalid_request"},
		"two ways":                   {bearer(jwt), and("client_secret", jwt), 400, "invalid_request"},
		"two ways in the form":       {nil, and("client_secret", jwt, "client_assertion", jwt, "client_assertion_type", jwtBearer), 400, "invalid_request"},
		"another kind of assertion":  {nil, and("client_assertion", jwt, "client_assertion_type", "saml"), 400, "invalid_request"},
		"two names":                  {basicAuth("orders", jwt), and("client_id", "others"), 400, "invalid_request"},
		"a token in the body":        {nil, and("access_token", jwt), 400, "invalid_request"},
		"no grant_type":              {bearer(jwt), and("grant_type", ""), 400, "invalid_request"},
		"another grant_type":         {bearer(jwt), and("grant_type", "password"), 400, "unsupported_grant_type"},
		"no client_id":               {bearer(jwt), and("client_id", ""), 400, "invalid_request"},
		"an odd client_id":           {bearer(jwt), and("client_id", "a b"), 400, "invalid_request"},
		"twice":                      {bearer(jwt), and("audience", "a", "audience", "b"), 400, "invalid_request"},
		"an odd scope":               {bearer(jwt), and("scope", `a"b`), 400, "invalid_scope"},
		"two spaces":                 {bearer(jwt), and("scope", "read  write"), 400, "invalid_scope"},
		"a long audience":            {bearer(jwt), and("audience", strings.Repeat("x", 513)), 400, "invalid_target"},
		"no such client":             {bearer(jwt), and("client_id", "billing"), 400, "unauthorized_client"},
		"a client of others":         {bearer(f.CallerJWT(apitest.Idle)), grant, 400, "unauthorized_client"},
		"a scope of others":          {bearer(jwt), and("scope", "admin"), 400, "unauthorized_client"},
	} {
		got := f.post(t, tokenPath, tt.header, tt.form)
		if code := got.json(t)["error"]; got.status != tt.status || code != tt.code || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v, want %d %s: %s", name, got.status, code, tt.status, tt.code, got.body)
		}
		if challenge := got.header.Get("WWW-Authenticate"); (tt.status == 401) != (challenge != "") {
			t.Errorf("%s: challenge %q", name, challenge)
		}
		if strings.Contains(got.body, jwt) || strings.Contains(got.body, "s3cr3t") {
			t.Errorf("%s: the answer repeats what came: %s", name, got.body)
		}
	}
	if log := f.Log.String(); strings.Contains(log, jwt[:60]) || strings.Contains(log, "s3cr3t") || strings.Contains(log, apitest.SecretCanary) {
		t.Error("a secret is in the log")
	}
}

// RFC 6749 section 3.2: no parameter is there more than once, known or not, with one
// value or two, with or without one. RFC 8707 admits it of resource.
func TestRepeatedParametersAreRefused(t *testing.T) {
	f := serve(t, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	values := map[string]string{
		"grant_type": "client_credentials", "client_id": "orders", "scope": "read", "audience": apitest.Audience, "token": f.Token(nil), "token_type_hint": "access_token",
		"client_secret": jwt, "client_assertion": jwt, "client_assertion_type": jwtBearer, "unknown": "x",
	}
	for path, form := range map[string]url.Values{
		tokenPath:      with("grant_type", "client_credentials", "client_id", "orders"),
		introspectPath: with("token", values["token"]),
	} {
		header := bearer(jwt)
		if got := f.post(t, path, header, form); got.status != 200 {
			t.Fatalf("%s: %d %s", path, got.status, got.body)
		}
		for name, value := range values {
			proof := header
			if strings.HasPrefix(name, "client_") && name != "client_id" {
				proof = nil
			}
			for _, second := range []string{value, "other", ""} {
				twice := maps.Clone(form)
				twice[name] = []string{value, second}
				if strings.HasPrefix(name, "client_assertion") {
					for _, needed := range []string{"client_assertion", "client_assertion_type"} {
						if needed != name {
							twice[needed] = []string{values[needed]}
						}
					}
				}
				got := f.post(t, path, proof, twice)
				if got.status != 400 || got.json(t)["error"] != "invalid_request" {
					t.Errorf("%s, %s twice: %d %s", path, name, got.status, got.body)
				}
			}
		}
		several := maps.Clone(form)
		several["resource"] = []string{"https://a.example.com", "https://b.example.com"}
		if got := f.post(t, path, header, several); strings.Contains(got.body, "invalid_request") {
			t.Errorf("%s, resource twice: %d %s", path, got.status, got.body)
		}
	}
}

// Queries are in logs and histories: what is in one is refused, and not merely
// overlooked.
func TestParametersInTheQueryAreRefused(t *testing.T) {
	f := serve(t, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	for path, form := range map[string]url.Values{
		tokenPath:      with("grant_type", "client_credentials", "client_id", "orders"),
		introspectPath: with("token", f.Token(nil)),
	} {
		for _, query := range []string{form.Encode(), "scope=read", "client_secret=" + jwt, "client_assertion=" + jwt, "access_token=" + jwt, "x", "="} {
			got := f.post(t, path+"?"+query, bearer(jwt), form)
			if got.status != 400 || got.json(t)["error"] != "invalid_request" {
				t.Errorf("%s?%.20s: %d %s", path, query, got.status, got.body)
			}
		}
	}
}

// Whoever has a browser on the host of a broker visits pages of others.
func TestBrowsersAreNoCallers(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	form := with("token", f.Token(nil))
	if got := f.post(t, introspectPath, nil, form); got.status != 200 || got.json(t)["active"] != true {
		t.Fatalf("a program: %d %s", got.status, got.body)
	}
	for _, header := range []http.Header{
		{"Origin": {"https://evil.example.com"}}, {"Origin": {"http://" + f.address}}, {"Origin": {"null"}},
		{"Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-origin"}, "Host": {"evil.example.com"}},
	} {
		for _, path := range []string{introspectPath, tokenPath} {
			got := f.post(t, path, header, form)
			if got.status != 400 || got.json(t)["error"] != "invalid_request" || got.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s, %v: %d %s", path, header, got.status, got.body)
			}
		}
	}
	// At a gateway such a request may well be.
	if got := f.do(t, "GET", need, http.Header{"Origin": {"https://shop.example.com"}, "Authorization": {"Bearer " + f.Token(nil)}}, ""); got.status != 200 {
		t.Errorf("at /verify: %d", got.status)
	}
}

// RFC 6749 section 2.3: a client proves who it is in one way at a time.
func TestTwoAuthenticationsAreRefused(t *testing.T) {
	f := serve(t, "", nil)
	jwt := f.CallerJWT(apitest.Shop)
	inHeader := map[string]http.Header{"Bearer": bearer(jwt), "Basic": basicAuth("orders", jwt)}
	inForm := map[string]url.Values{
		"client_secret":    with("client_secret", jwt),
		"client_assertion": with("client_assertion", jwt, "client_assertion_type", jwtBearer),
		"both":             with("client_secret", jwt, "client_assertion", jwt, "client_assertion_type", jwtBearer),
	}
	for path, form := range map[string]url.Values{
		tokenPath:      with("grant_type", "client_credentials", "client_id", "orders"),
		introspectPath: with("token", f.Token(nil)),
	} {
		refused := func(name string, header http.Header, proof url.Values) {
			t.Helper()
			all := maps.Clone(form)
			maps.Copy(all, proof)
			got := f.post(t, path, header, all)
			if got.status != 400 || got.json(t)["error"] != "invalid_request" {
				t.Errorf("%s, %s: %d %s", path, name, got.status, got.body)
			}
		}
		refused("two in the form", nil, inForm["both"])
		refused("Bearer and Basic", http.Header{"Authorization": {inHeader["Bearer"].Get("Authorization"), inHeader["Basic"].Get("Authorization")}}, nil)
		refused("Bearer in the form", inHeader["Bearer"], with("access_token", jwt))
		for header, sent := range inHeader {
			for proof, pairs := range inForm {
				refused(header+" and "+proof, sent, pairs)
			}
		}
	}
}

func TestTokenEndpoint_needsAForm(t *testing.T) {
	f := serve(t, "", nil)
	auth := bearer(f.CallerJWT(apitest.Shop))
	const form = "grant_type=client_credentials&client_id=orders"
	for name, tt := range map[string]struct{ target, kind, body string }{
		"JSON":             {tokenPath, "application/json", `{"grant_type":"client_credentials"}`},
		"no type":          {tokenPath, "", form},
		"in the query":     {tokenPath + "?" + form, "application/x-www-form-urlencoded", ""},
		"semicolons":       {tokenPath, "application/x-www-form-urlencoded", strings.ReplaceAll(form, "&", ";")},
		"a broken escape":  {tokenPath, "application/x-www-form-urlencoded", form + "&x=%zz"},
		"more than 64 KiB": {tokenPath, "application/x-www-form-urlencoded", form + "&x=" + strings.Repeat("x", 64<<10)},
	} {
		header := http.Header{"Authorization": auth["Authorization"], "Content-Type": {tt.kind}}
		got := f.do(t, "POST", tt.target, header, tt.body)
		if got.status != 400 || got.json(t)["error"] != "invalid_request" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

func TestTokenEndpoint_idpFailures(t *testing.T) {
	f := serve(t, "", nil)
	auth := bearer(f.CallerJWT(apitest.Shop))
	form := with("grant_type", "client_credentials", "client_id", "orders")
	// The JWT is verified, so that the keys are held, before the IdP fails.
	if got := f.post(t, introspectPath, auth, with("token", "x")); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	f.IdP.FailNext(1, 429, "", map[string][]string{"Retry-After": {"17"}})
	got := f.post(t, tokenPath, auth, form)
	if wait, _ := strconv.Atoi(got.header.Get("Retry-After")); got.status != 429 || wait < 1 || wait > 17 || got.json(t)["error"] != "temporarily_unavailable" {
		t.Errorf("throttled: %d %v %s", got.status, got.header, got.body)
	}
}

func TestIntrospection_responses(t *testing.T) {
	f := serve(t, apitest.Gate, nil)
	got := f.post(t, introspectPath, nil, with("token", f.Token(nil), "token_type_hint", "access_token"))
	answer := got.json(t)
	for name, want := range map[string]any{
		"active": true, "iss": apitest.Issuer, "sub": "user-1", "client_id": "web", "aud": apitest.Audience, "scope": "read write", "jti": "jti-1", "token_type": "Bearer",
	} {
		if answer[name] != want {
			t.Errorf("%s: %v, want %v", name, answer[name], want)
		}
	}
	if got.header.Get("Cache-Control") != "no-store" || answer["exp"] == nil || answer["iat"] == nil {
		t.Errorf("%v %s", got.header, got.body)
	}
	bad := map[string]string{
		"expired":          f.Token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()}),
		"another audience": f.Token(map[string]any{"aud": "https://other.example.com"}),
		"no JWT":           "opaque",
		"odd":              "\x00",
	}
	for name, token := range bad {
		if got := f.post(t, introspectPath, nil, with("token", token)); got.status != 200 || got.body != `{"active":false}`+"\n" {
			t.Errorf("%s: %d %q", name, got.status, got.body)
		}
	}
	if got := f.post(t, introspectPath, nil, nil); got.status != 400 || got.json(t)["error"] != "invalid_request" {
		t.Errorf("no token: %d %s", got.status, got.body)
	}
}

func TestIntrospection_needsPermission(t *testing.T) {
	f := serve(t, "", nil)
	token := f.Token(nil)
	if got := f.post(t, introspectPath, nil, with("token", token)); got.status != 401 || got.json(t)["error"] != "invalid_client" {
		t.Errorf("nobody: %d %s", got.status, got.body)
	}
	if got := f.post(t, introspectPath, bearer(f.CallerJWT(apitest.Idle)), with("token", token)); got.status != 403 || got.json(t)["error"] != "access_denied" {
		t.Errorf("one who may not: %d %s", got.status, got.body)
	}
	if got := f.post(t, introspectPath, basicAuth("orders", f.CallerJWT(apitest.Shop)), with("token", token)); got.status != 200 || got.json(t)["active"] != true {
		t.Errorf("one who may: %d %s", got.status, got.body)
	}
	f.IdP.SetDown(true)
	unknown := apitest.New(t).Token(nil) // its key is not one that is held
	if got := f.post(t, introspectPath, bearer(f.CallerJWT(apitest.Shop)), with("token", unknown)); got.status == 200 && got.json(t)["active"] == true {
		t.Errorf("a key that nobody knows: %d %s", got.status, got.body)
	}
}

func TestMetadataNameTheEndpoints(t *testing.T) {
	f := serve(t, "", nil)
	got := f.do(t, "GET", "/.well-known/oauth-authorization-server", http.Header{"Host": {"evil.example.com"}}, "").json(t)
	const base = "https://broker.example.com:8444"
	if got["issuer"] != base || got["token_endpoint"] != base+tokenPath || got["introspection_endpoint"] != base+introspectPath {
		t.Errorf("%v", got)
	}
}
