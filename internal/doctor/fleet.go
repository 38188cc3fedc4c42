package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

// Fleet is the status of the running fleet.
type Fleet struct {
	Replicas []Replica
	// Findings counts the findings of the fleet itself.
	Findings int
}

// Replica is a running replica.
type Replica struct {
	Name string
	// Digest is the SHA-256 of its configuration file; empty if it is unknown.
	Digest []byte
}

// compare compares the configuration with that of the running fleet.
func (r *result) compare(ctx context.Context) {
	running, err := r.Fleet(ctx)
	if err != nil {
		r.report(Note, "fleet-unknown", "the configuration could not be compared with that of the running fleet: "+err.Error(),
			"Name the address of a replica with --addr, and the credentials of a caller with the action get_status.")
		return
	}
	own := fleet.Digest(r.config.Digest)
	var others, unknown []string
	for _, replica := range running.Replicas {
		switch {
		case len(replica.Digest) == 0:
			unknown = append(unknown, replica.Name)
		case string(replica.Digest) != string(own[:]):
			var digest fleet.Digest
			copy(digest[:], replica.Digest)
			others = append(others, fmt.Sprintf("%s runs %s", replica.Name, digest.Short()))
		}
	}
	if len(others) > 0 {
		r.reportAt(Warning, fleet.ConfigDiffers, []any{}, fmt.Sprintf("the file has the digest %s, but %d of %d replicas run another configuration: %s", own.Short(), len(others), len(running.Replicas), list(others)),
			"Deploy this file, and restart replicas whose log says that a section needs a restart; or check the file that is deployed.")
	}
	if len(unknown) > 0 {
		r.report(Note, "fleet-unknown", "the configuration of some replicas is unknown: "+strings.Join(unknown, ", "), "`broker status` says why.")
	}
	if running.Findings > 0 {
		r.report(Note, "fleet-findings", fmt.Sprintf("the running fleet has %d findings of its own", running.Findings), "`broker status` shows them.")
	}
	if len(others)+len(unknown) == 0 {
		r.pass(fmt.Sprintf("all %d replicas run this file", len(running.Replicas)))
	}
}
