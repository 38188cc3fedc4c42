package secretsource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// maxResponse bounds a response of Vault, in bytes. All fields of a secret are in it.
const maxResponse = 1 << 20

// VaultAuth is a method to log in to Vault.
type VaultAuth string

// The methods.
const (
	VaultKubernetes VaultAuth = "kubernetes"
	VaultJWT        VaultAuth = "jwt"
	VaultAppRole    VaultAuth = "approle"
	VaultTokenFile  VaultAuth = "token_file"
)

// VaultAuths returns all methods.
func VaultAuths() []VaultAuth {
	return []VaultAuth{VaultKubernetes, VaultJWT, VaultAppRole, VaultTokenFile}
}

// VaultConfig configures a Vault.
type VaultConfig struct {
	// Address is the base URL, such as https://vault.example.com:8200.
	Address string
	// Namespace of Vault Enterprise or OpenBao. Empty: the root namespace.
	Namespace string
	// Mount is the path of the KV engine of version 2, Path that of the secret in it, and
	// Field the name of the value in the secret.
	Mount, Path, Field string
	Auth               VaultAuth
	// AuthMount is the path of the auth method.
	AuthMount string
	// Role is the role of VaultKubernetes and VaultJWT.
	Role string
	// Credential is the JWT, the secret_id of VaultAppRole, or the token of VaultTokenFile.
	// It is read again for each login. RoleID belongs to VaultAppRole.
	Credential, RoleID secret.Ref
	// Every is the time between two reads: the token must last until the next one.
	Every time.Duration
	// HTTP sends the requests. It must follow no redirects.
	HTTP *http.Client
}

// Vault reads a secret from the KV engine, version 2, of HashiCorp Vault or OpenBao.
type Vault struct {
	cfg VaultConfig

	mu    sync.Mutex // one read at a time
	token vaultToken
}

// vaultToken is the token of a login.
type vaultToken struct {
	value     redact.String
	expires   time.Time // zero: it does not expire
	renewable bool
}

// NewVault returns a Vault. It sends no request.
func NewVault(cfg VaultConfig) *Vault { return &Vault{cfg: cfg} }

// Read reads the current version of the secret. It logs in first if it has no token that
// lasts, and once more if Vault refuses the token.
func (v *Vault) Read(ctx context.Context) (Value, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh, err := v.authenticate(ctx)
	if err != nil {
		return Value{}, err
	}
	value, err := v.read(ctx)
	if !isForbidden(err) {
		return value, err
	}
	v.token = vaultToken{}
	if fresh { // a new token would not help
		return Value{}, err
	}
	if err := v.login(ctx); err != nil {
		return Value{}, err
	}
	if value, err = v.read(ctx); isForbidden(err) {
		v.token = vaultToken{}
	}
	return value, err
}

// authenticate makes sure that there is a token that lasts until the next read: it renews
// the token, or logs in. fresh reports a login.
func (v *Vault) authenticate(ctx context.Context) (fresh bool, err error) {
	now := time.Now()
	t := &v.token
	next := now.Add(v.cfg.Every + v.cfg.Every/2)
	switch {
	case v.cfg.Auth == VaultTokenFile, t.value.IsZero(), !t.expires.IsZero() && now.After(t.expires):
		return true, v.login(ctx)
	case t.expires.IsZero(), t.expires.After(next):
		return false, nil
	case t.renewable && v.renew(ctx) == nil && v.token.expires.After(next):
		return false, nil
	default: // the token has reached its longest lifetime, or cannot be renewed
		return true, v.login(ctx)
	}
}

// loginBody is the body of a login. It contains credentials.
func (v *Vault) loginBody() (map[string]string, error) {
	credential, err := v.credential(v.cfg.Credential)
	if err != nil {
		return nil, err
	}
	if v.cfg.Auth != VaultAppRole {
		return map[string]string{"role": v.cfg.Role, "jwt": credential.Reveal()}, nil
	}
	roleID, err := v.credential(v.cfg.RoleID)
	return map[string]string{"role_id": roleID.Reveal(), "secret_id": credential.Reveal()}, err
}

func (v *Vault) credential(ref secret.Ref) (redact.String, error) {
	source, err := secret.Open(ref)
	if err != nil {
		return redact.String{}, fmt.Errorf("the credential for the login cannot be read: %w", err)
	}
	return source.Current().Value, nil
}

// login obtains a token.
func (v *Vault) login(ctx context.Context) error {
	v.token = vaultToken{}
	if v.cfg.Auth == VaultTokenFile {
		token, err := v.credential(v.cfg.Credential)
		v.token.value = token
		return err
	}
	body, err := v.loginBody()
	if err != nil {
		return err
	}
	return v.obtain(ctx, "the login", "/v1/auth/"+escaped(v.cfg.AuthMount)+"/login", body)
}

// renew prolongs the token.
func (v *Vault) renew(ctx context.Context) error {
	return v.obtain(ctx, "the renewal of the token", "/v1/auth/token/renew-self", map[string]string{})
}

// obtain sends a request that responds with a token.
func (v *Vault) obtain(ctx context.Context, what, path string, body map[string]string) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	defer clear(encoded)
	requested := time.Now()
	response, err := v.do(ctx, what, http.MethodPost, path, encoded)
	defer clear(response)
	if err != nil {
		return err
	}
	var granted struct {
		Auth *struct {
			Token     string `json:"client_token"`
			Lifetime  int64  `json:"lease_duration"`
			Renewable bool   `json:"renewable"`
		} `json:"auth"`
	}
	if json.Unmarshal(response, &granted) != nil || granted.Auth == nil || granted.Auth.Token == "" {
		return fmt.Errorf("%s: %s returned no token: is the address that of Vault or OpenBao?", v.cfg.Address, what)
	}
	v.token = vaultToken{value: redact.New(granted.Auth.Token), renewable: granted.Auth.Renewable}
	if granted.Auth.Lifetime > 0 {
		v.token.expires = requested.Add(time.Duration(granted.Auth.Lifetime) * time.Second)
	}
	return nil
}

// secretResponse is the response of the KV engine. A field that is no text stays encoded.
type secretResponse struct {
	Data struct {
		Data     map[string]json.RawMessage `json:"data"`
		Metadata struct {
			Version   int64  `json:"version"`
			Deleted   string `json:"deletion_time"`
			Destroyed bool   `json:"destroyed"`
		} `json:"metadata"`
	} `json:"data"`
}

func (v *Vault) read(ctx context.Context) (Value, error) {
	response, err := v.do(ctx, "reading the secret", http.MethodGet, "/v1/"+escaped(v.cfg.Mount)+"/data/"+escaped(v.cfg.Path), nil)
	defer clear(response)
	status, isStatus := errors.AsType[*vaultError](err)
	if err != nil && (!isStatus || status.code != http.StatusNotFound) {
		return Value{}, err
	}
	var got secretResponse
	decoded := json.Unmarshal(response, &got) == nil
	meta, name := got.Data.Metadata, v.cfg.Mount+"/"+v.cfg.Path
	field, given := got.Data.Data[v.cfg.Field]
	var text string
	switch {
	// A version with delete_version_after has its deletion_time before it is deleted.
	case isStatus && decoded && (meta.Destroyed || meta.Deleted != ""):
		return Value{}, fmt.Errorf("%s: version %d of %s is deleted: undelete it, or write a new version", v.cfg.Address, meta.Version, name)
	case isStatus:
		return Value{}, fmt.Errorf("%s: there is no secret %s: check mount and path, which do not contain data/", v.cfg.Address, name)
	case !decoded || meta.Version == 0:
		return Value{}, fmt.Errorf("%s: %s is not a secret of a KV engine of version 2: check mount", v.cfg.Address, name)
	case !given:
		return Value{}, fmt.Errorf("%s: version %d of %s has no field %q", v.cfg.Address, meta.Version, name, v.cfg.Field)
	case json.Unmarshal(field, &text) != nil || text == "":
		return Value{}, fmt.Errorf("%s: the field %q of version %d of %s is not a text, or is empty", v.cfg.Address, v.cfg.Field, meta.Version, name)
	case len(text) > secret.MaxSize:
		return Value{}, fmt.Errorf("%s: the field %q of version %d of %s has more than %d bytes: is it a secret?", v.cfg.Address, v.cfg.Field, meta.Version, name, secret.MaxSize)
	default:
		return Value{Secret: redact.New(text), Version: "version " + strconv.FormatInt(meta.Version, 10)}, nil
	}
}

// vaultError is a response with another status than 200. It does not quote the response.
type vaultError struct {
	code int
	text string
}

func (e *vaultError) Error() string { return e.text }

func isForbidden(err error) bool {
	status, ok := errors.AsType[*vaultError](err)
	return ok && status.code == http.StatusForbidden
}

// do sends a request and returns the body of the response, also with a *vaultError.
func (v *Vault) do(ctx context.Context, what, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(v.cfg.Address, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: the request cannot be made: check the address", v.cfg.Address)
	}
	request.Header.Set("X-Vault-Request", "true")
	if v.cfg.Namespace != "" {
		request.Header.Set("X-Vault-Namespace", v.cfg.Namespace)
	}
	if !v.token.value.IsZero() {
		request.Header.Set("X-Vault-Token", v.token.value.Reveal())
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := v.cfg.HTTP.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %s failed: %w", v.cfg.Address, what, discovery.Cause(err))
	}
	defer func() { _ = response.Body.Close() }()
	data, err := redact.ReadAll(io.LimitReader(response.Body, maxResponse+1), maxResponse+1)
	switch {
	case err != nil:
		return data, fmt.Errorf("%s: %s failed: the response is incomplete", v.cfg.Address, what)
	case len(data) > maxResponse:
		return data, fmt.Errorf("%s: %s failed: the response is larger than %d bytes", v.cfg.Address, what, maxResponse)
	case response.StatusCode != http.StatusOK:
		return data, &vaultError{response.StatusCode, fmt.Sprintf("%s: %s failed: %s", v.cfg.Address, what, v.meaning(response.StatusCode))}
	default:
		return data, nil
	}
}

// meaning explains a status.
func (v *Vault) meaning(status int) string {
	switch {
	case status == http.StatusForbidden && v.cfg.Auth == VaultTokenFile:
		return "permission denied (HTTP 403): the token has expired, or its policy does not allow to read the secret"
	case status == http.StatusForbidden:
		return "permission denied (HTTP 403): check the role, and that its policy allows to read the secret"
	case status == http.StatusBadRequest:
		return "Vault refuses the login (HTTP 400): check auth_mount, role and the credential"
	case status == http.StatusServiceUnavailable:
		return "Vault is sealed or in maintenance (HTTP 503)"
	case status == http.StatusTooManyRequests:
		return "Vault limits the rate of requests (HTTP 429)"
	case status >= 300 && status < 400:
		return fmt.Sprintf("Vault redirects to another server (HTTP %d), which the broker does not follow: give the address of the active server or of a load balancer", status)
	default:
		return fmt.Sprintf("HTTP %d", status)
	}
}

// escaped escapes a path between its slashes.
func escaped(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return strings.Join(parts, "/")
}
