// Package e2e holds the end-to-end tests. They run the broker's binary beside an
// identity provider that others wrote (npm oidc-provider, in oidc-provider/) and use it
// as its users do, over gRPC, grpcurl and the command line:
//
//   - fleet: replicas that share a real Redis, which is killed, hung and failed over;
//     rotation of secrets; an identity provider in the test's own process counts calls;
//     the status page in Chromium (browser/).
//   - edge: identity providers, callers and gateways, each with real programs.
//   - deploy: the command line, docker-compose.yaml, deploy/kubernetes and systemd.
//   - harness: what they share.
//
// Every process listens on a free loopback port and has a directory of its own.
// A test whose peer is not installed is skipped and says how to install it; with
// CI=true it fails instead.
package e2e
