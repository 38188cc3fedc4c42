package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devca"
)

// The identities of the load for authentication.
const (
	loadID      = "spiffe://example.com/ns/bench/sa/load"
	loadSubject = "system:serviceaccount:bench:load"
)

// Names of the files with the credentials of servers and load.
const (
	authorityFile = "ca"
	serverFile    = "server"
	loadFile      = "load"
	jwtFile       = "load.jwt"
)

// proof is how a process connects to a server. Zero: in plaintext, unauthenticated.
type proof struct {
	dir string // directory of the files
	jwt bool   // by the JWT there, not by the certificate
}

// proofFlags are the flags that say how to connect.
func proofFlags(set *flag.FlagSet) *proof {
	var by proof
	set.StringVar(&by.dir, "tls", "", "connect with TLS by the certificates in `DIR`; empty: in plaintext")
	set.BoolVar(&by.jwt, "jwt", false, "be recognised by a JWT, not by a certificate")
	return &by
}

// args are the arguments that proofFlags reads.
func (p proof) args() []string {
	if p.jwt {
		return []string{"-tls", p.dir, "-jwt"}
	}
	return []string{"-tls", p.dir}
}

// prove makes the credentials of servers and load, in dir.
func (b *bench) prove(dir string) (proof, error) {
	authority, err := devca.New("bench")
	if err != nil {
		return proof{}, err
	}
	id, err := url.Parse(loadID)
	if err != nil {
		return proof{}, err
	}
	_, err = authority.Write(dir, authorityFile)
	for name, like := range map[string]*x509.Certificate{
		serverFile: {IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}},
		loadFile:   {URIs: []*url.URL{id}},
	} {
		pair, errIssue := authority.Issue(like)
		if errIssue != nil {
			return proof{}, errIssue
		}
		_, _, errWrite := pair.Write(dir, name)
		err = errors.Join(err, errWrite)
	}
	token := b.idp.Mint(map[string]any{
		"iss": b.idp.Issuer(), "sub": loadSubject, "client_id": "load", "aud": caller.DefaultAudience,
		"iat": time.Now().Unix(), "exp": time.Now().Add(12 * time.Hour).Unix(),
	})
	return proof{dir: dir}, errors.Join(err, os.WriteFile(filepath.Join(dir, jwtFile), []byte(token.Reveal()), 0o600))
}

func (p proof) path(name string) string { return filepath.Join(p.dir, name) }

// pair reads a certificate and its CA.
func (p proof) pair(name string) (tls.Certificate, *x509.CertPool, error) {
	pair, err := tls.LoadX509KeyPair(p.path(name+".crt"), p.path(name+".key"))
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	text, err := os.ReadFile(p.path(authorityFile + ".crt"))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pair, pool, err
}

// client returns the options of a connection.
func (p proof) client() ([]grpc.DialOption, error) {
	if p.dir == "" {
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, nil
	}
	pair, authority, err := p.pair(loadFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: authority, MinVersion: tls.VersionTLS13}
	if !p.jwt {
		config.Certificates = []tls.Certificate{pair}
		return []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config))}, nil
	}
	token, err := os.ReadFile(p.path(jwtFile))
	return []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(bearer(token))}, err
}

// server returns the options of a server other than the broker.
func (p proof) server() ([]grpc.ServerOption, error) {
	if p.dir == "" {
		return nil, nil
	}
	config, err := p.serverTLS()
	if err != nil {
		return nil, err
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(config))}, nil
}

func (p proof) serverTLS() (*tls.Config, error) {
	pair, authority, err := p.pair(serverFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: authority, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13}, nil
}

// bearer presents a JWT with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
