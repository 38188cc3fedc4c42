// Package e2e holds the end-to-end tests: they build the broker's binary, run
// it beside an identity provider that nobody here wrote (npm oidc-provider, in
// oidc-provider/) and use it as its users do, over gRPC, grpcurl and the
// command line. Fleets of replicas share a real Redis, which is killed, hung
// and failed over, and ask an identity provider in the test's own process that
// counts each call. It has no code of its own.
//
// Every process listens on a free loopback port and has a directory of its own.
// A test whose peer is not installed is skipped and says how to install it; with
// CI=true it fails instead.
package e2e
