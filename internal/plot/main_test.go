package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

const root = "../.."

func TestImagesBelongToTheMeasurements(t *testing.T) {
	images, err := draw(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range images {
		committed, err := os.ReadFile(filepath.Join(root, imagesDir, name))
		if err != nil || !bytes.Equal(committed, image) {
			t.Errorf("%s is not up to date (%v): go run ./internal/plot", name, err)
		}
		if lines := elements(t, image)["polyline"]; lines < 4 {
			t.Errorf("%s has %d lines", name, lines)
		}
	}
}

// elements counts the elements of an image, which must be well-formed.
func elements(t *testing.T, image []byte) map[string]int {
	t.Helper()
	count := map[string]int{}
	for decoder := xml.NewDecoder(bytes.NewReader(image)); ; {
		part, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return count
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := part.(xml.StartElement); ok {
			count[start.Name.Local]++
		}
	}
}

func TestTextIsEscaped(t *testing.T) {
	image := picture{title: `a "b" <c> & d`, panels: []panel{{lines: []line{{name: "<e>", points: []point{{1, 2}}}}}}}.svg()
	if got := elements(t, image); got["svg"] != 1 || got["c"]+got["e"] > 0 {
		t.Errorf("elements: %v", got)
	}
}

func TestLogarithmicLinesLeaveOutZero(t *testing.T) {
	image := picture{panels: []panel{{y: axis{log: true}, lines: []line{{points: []point{{1, 0}, {2, 10}, {3, 100}}}}}}}.svg()
	if bytes.Contains(image, []byte("NaN")) || bytes.Contains(image, []byte("Inf")) {
		t.Errorf("a point is nowhere: %s", image)
	}
}
