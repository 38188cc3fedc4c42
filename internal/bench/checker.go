package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// checker verifies the signature of a token and nothing else: the least that any verifier
// does. Without a function it accepts everything.
type checker struct {
	valid func(input, signature []byte) bool
}

var errBadToken = status.Error(codes.Unauthenticated, "the signature is not valid")

func (c checker) check(token string) error {
	if c.valid == nil {
		return nil
	}
	end := strings.LastIndexByte(token, '.')
	if end < 0 {
		return errBadToken
	}
	signature, err := base64.RawURLEncoding.DecodeString(token[end+1:])
	if err != nil || !c.valid([]byte(token[:end]), signature) {
		return errBadToken
	}
	return nil
}

// newChecker returns a checker for the first key of the JWK set at a URL. Without a URL it
// accepts everything.
func newChecker(ctx context.Context, url string) (checker, error) {
	if url == "" {
		return checker{}, nil
	}
	first, err := firstKey(ctx, url)
	if err != nil {
		return checker{}, err
	}
	return first.checker()
}

// firstKey returns the first key of the JWK set at a URL.
func firstKey(ctx context.Context, url string) (key, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return key{}, err
	}
	answer, err := patient().Do(request)
	if err != nil {
		return key{}, err
	}
	var set struct{ Keys []key }
	err = json.NewDecoder(answer.Body).Decode(&set)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return key{}, err
	}
	if len(set.Keys) == 0 {
		return key{}, errors.New("the JWK set is empty")
	}
	return set.Keys[0], nil
}

// key is a public key of a JWK set.
type key struct {
	Type string `json:"kty"`
	N, E string // RSA
	X, Y string // others
}

// public returns an *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
func (k key) public() (crypto.PublicKey, error) {
	var errs error
	decode := func(text string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(text)
		errs = errors.Join(errs, err)
		return data
	}
	number := func(text string) *big.Int { return new(big.Int).SetBytes(decode(text)) }
	switch k.Type {
	case "RSA":
		return &rsa.PublicKey{N: number(k.N), E: int(number(k.E).Int64())}, errs
	case "EC":
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, decode(k.X)...), decode(k.Y)...))
		return public, errors.Join(errs, err)
	case "OKP":
		return ed25519.PublicKey(decode(k.X)), errs
	default:
		return nil, fmt.Errorf("a key of the type %q", k.Type)
	}
}

func (k key) checker() (checker, error) {
	public, err := k.public()
	if err != nil {
		return checker{}, err
	}
	switch public := public.(type) {
	case *rsa.PublicKey:
		return checker{rs256(public)}, nil
	case *ecdsa.PublicKey:
		return checker{es256(public)}, nil
	case ed25519.PublicKey:
		return checker{func(input, signature []byte) bool { return ed25519.Verify(public, input, signature) }}, nil
	default:
		return checker{}, fmt.Errorf("a key of the type %T", public)
	}
}

func rs256(public *rsa.PublicKey) func(input, signature []byte) bool {
	return func(input, signature []byte) bool {
		digest := sha256.Sum256(input)
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
	}
}

func es256(public *ecdsa.PublicKey) func(input, signature []byte) bool {
	return func(input, signature []byte) bool {
		const half = 32
		if len(signature) != 2*half {
			return false
		}
		digest := sha256.Sum256(input)
		return ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]))
	}
}
