// Command plot draws the measurements of the simulation and of the soak test as SVG images for the
// documentation. Run it in the root of the repository, with "go run ./internal/plot".
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"
)

// The committed measurements, and the directory of the images.
const (
	fleetsFile = "internal/scale/testdata/fleets.json"
	soakFile   = "internal/e2e/fleet/testdata/soak.json"
	imagesDir  = "docs/images"
)

func main() {
	images, err := draw(".")
	if err != nil {
		log.Fatal(err)
	}
	for name, image := range images {
		if err := os.WriteFile(filepath.Join(imagesDir, name), image, 0o600); err != nil {
			log.Fatal(err)
		}
	}
}

// draw returns the images by the names of their files, from the measurements below root.
func draw(root string) (map[string][]byte, error) {
	var sizes []fleet
	if err := read(filepath.Join(root, fleetsFile), &sizes); err != nil {
		return nil, err
	}
	var soaked soak
	if err := read(filepath.Join(root, soakFile), &soaked); err != nil {
		return nil, err
	}
	return map[string][]byte{
		"sizing-traffic.svg": traffic(sizes).svg(),
		"sizing-spread.svg":  spreading(sizes).svg(),
		"soak.svg":           soaked.picture().svg(),
	}, nil
}

func read(path string, into any) error {
	text, err := os.ReadFile(path) //nolint:gosec // a file of the repository
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// fleet has the plotted members of a result of the simulation.
type fleet struct {
	Replicas int `json:"replicas"`
	Rest     rates
	Load     rates

	Purge          spread `json:"purge"`
	Revocation     spread `json:"revocation"`
	Rotation       spread `json:"rotation"`
	LostPurge      spread `json:"lost_purge"`
	LostRevocation spread `json:"lost_revocation"`
	LostRotation   spread `json:"lost_rotation"`
}

type rates struct{ Trips, Messages float64 }

type spread struct {
	Last time.Duration `json:"max"`
}

func traffic(sizes []fleet) picture {
	perSize := func(of func(fleet) float64) (points []point) {
		for _, one := range sizes {
			points = append(points, point{float64(one.Replicas), of(one)})
		}
		return points
	}
	return picture{title: "Trips to Redis and messages of Redis, for the whole fleet", panels: []panel{{
		x: axis{label: "replicas", log: true}, y: axis{label: "per second", log: true},
		lines: []line{
			{"trips at rest", perSize(func(f fleet) float64 { return f.Rest.Trips })},
			{"trips under load", perSize(func(f fleet) float64 { return f.Load.Trips })},
			{"messages at rest", perSize(func(f fleet) float64 { return f.Rest.Messages })},
			{"messages under load", perSize(func(f fleet) float64 { return f.Load.Messages })},
		},
	}}}
}

func spreading(sizes []fleet) picture {
	perSize := func(of func(fleet) spread) (points []point) {
		for _, one := range sizes {
			points = append(points, point{float64(one.Replicas), float64(of(one).Last.Microseconds()) / 1000})
		}
		return points
	}
	return picture{title: "Time until a change has reached all replicas", panels: []panel{{
		x: axis{label: "replicas", log: true}, y: axis{label: "milliseconds", log: true},
		lines: []line{
			{"purge", perSize(func(f fleet) spread { return f.Purge })},
			{"revocation", perSize(func(f fleet) spread { return f.Revocation })},
			{"rotation", perSize(func(f fleet) spread { return f.Rotation })},
			{"purge, events lost", perSize(func(f fleet) spread { return f.LostPurge })},
			{"revocation, events lost", perSize(func(f fleet) spread { return f.LostRevocation })},
			{"rotation, events lost", perSize(func(f fleet) spread { return f.LostRotation })},
		},
	}}}
}

// soak is the record of the soak test.
type soak struct {
	Replicas []string `json:"replicas"`
	Samples  []sample `json:"samples"`
}

// sample has a value for each replica, except for the keys of Redis.
type sample struct {
	Seconds     float64   `json:"seconds"`
	HeapMiB     []float64 `json:"heap_mib"`
	Goroutines  []float64 `json:"goroutines"`
	Descriptors []float64 `json:"descriptors"`
	Keys        float64   `json:"keys"`
}

func (s soak) picture() picture {
	panelOf := func(label string, of func(sample) []float64) panel {
		made := panel{x: axis{label: "seconds"}, y: axis{label: label}}
		for i, name := range s.Replicas {
			drawn := line{name: name}
			for _, one := range s.Samples {
				if values := of(one); i < len(values) {
					drawn.points = append(drawn.points, point{one.Seconds, values[i]})
				}
			}
			made.lines = append(made.lines, drawn)
		}
		return made
	}
	keys := panel{x: axis{label: "seconds"}, y: axis{label: "keys in Redis"}, lines: []line{{name: "Redis"}}}
	for _, one := range s.Samples {
		keys.lines[0].points = append(keys.lines[0].points, point{one.Seconds, one.Keys})
	}
	return picture{title: "A fleet during the soak test", panels: []panel{
		panelOf("heap, MiB", func(one sample) []float64 { return one.HeapMiB }),
		panelOf("goroutines", func(one sample) []float64 { return one.Goroutines }),
		panelOf("file descriptors", func(one sample) []float64 { return one.Descriptors }),
		keys,
	}}
}
