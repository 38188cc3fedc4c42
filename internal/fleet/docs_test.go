package fleet_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

// The thresholds that operators read are those of the code.
func TestDocumentedThresholdsMatch(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]time.Duration{
		fleet.ReplicaLost:          {fleet.RecordTTL, fleet.BeaconTTL},
		fleet.ConfigDiffers:        {fleet.ConfigSettle},
		fleet.RingRollout:          {fleet.RingSettle},
		fleet.VersionsDiffer:       {fleet.VersionSettle},
		fleet.SecretsDiffer:        {fleet.SecretsSettle},
		fleet.SecretPending:        {fleet.PendingLimit},
		fleet.KeyOverdue:           {fleet.KeyLimit},
		fleet.ClockDiffers:         {fleet.ClockLimit},
		fleet.RevocationsNotLoaded: {fleet.StartGrace},
		fleet.KeysUnusable:         {fleet.StartGrace},
		fleet.RevocationsOld:       {fleet.RevocationsLimit},
		fleet.KeysOld:              {fleet.KeysLimit},
		fleet.CertificateEnding:    {fleet.CertificateLimit},
		fleet.AuditLost:            {fleet.LostMemory},
	}
	_, table, _ := strings.Cut(string(text), "| finding | threshold |")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*`) \\| (.*) \\|$").FindAllStringSubmatch(table, -1) {
		for _, id := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(row[1], -1) {
			if want[id[1]] == nil {
				t.Errorf("%s has a threshold in the documentation only", id[1])
			}
			for _, threshold := range want[id[1]] {
				if !regexp.MustCompile(`\b` + inWords(threshold) + `\b`).MatchString(row[2]) {
					t.Errorf("%s: the documentation says %q, the code %s", id[1], row[2], inWords(threshold))
				}
			}
			delete(want, id[1])
		}
	}
	for id := range want {
		t.Errorf("the documentation has no threshold of %s", id)
	}
}

// inWords writes a duration as the documentation does.
func inWords(d time.Duration) string {
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "h"}, {time.Minute, "min"}} {
		if d%unit.size == 0 {
			return fmt.Sprintf("%d %s", d/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%d s", d/time.Second)
}
