// Package scale simulates fleets of up to 1,000 replicas in virtual time and counts their
// cost. docs/sizing.md has the results. The package has no code of its own.
package scale
