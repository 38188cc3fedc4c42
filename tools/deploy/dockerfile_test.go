package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
)

type stage struct {
	Name string `json:"name"`
	// Base is what stands after FROM: an image, another stage, or scratch.
	Base string `json:"base"`
	// Config is what the Dockerfile itself says of the stage's image.
	Config dockerspec.DockerOCIImageConfig `json:"config"`
	// Instructions are those of the stage after FROM, as they are written.
	Instructions []string `json:"instructions"`
}

// checkDockerfile returns the stages of the file at path, in order.
func checkDockerfile(ctx context.Context, path string) (any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	options := dockerfile2llb.ConvertOpt{MetaResolver: blankImages{}, SourceMap: llb.NewSourceMap(nil, path, "Dockerfile", text)}
	options.SourceMap.Definition = &llb.Definition{} // the linter wants one
	if err := lint(ctx, text, options); err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	written, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	var stages []stage
	for _, s := range written {
		if s.Name == "" {
			return nil, fmt.Errorf("the stage FROM %s has no name: give it one with AS", s.BaseName)
		}
		options.Target = s.Name
		built, err := dockerfile2llb.Dockerfile2LLB(ctx, text, options)
		if err != nil {
			return nil, err
		}
		stages = append(stages, stage{s.Name, s.BaseName, built.Image.Config, texts(s.Commands)})
	}
	return stages, nil
}

func texts(commands []instructions.Command) []string {
	var all []string
	for _, command := range commands {
		all = append(all, fmt.Sprint(command))
	}
	return all
}

// lint applies all of BuildKit's rules to all stages; a warning is an error.
func lint(ctx context.Context, text []byte, options dockerfile2llb.ConvertOpt) error {
	results, err := dockerfile2llb.DockerfileLint(ctx, text, options)
	if err != nil {
		return err
	}
	var report bytes.Buffer
	if results.Error != nil {
		results.PrintErrorTo(&report, nil)
	}
	if err := results.PrintTo(&report, nil); err != nil {
		return err
	}
	if report.Len() > 0 {
		return errors.New(report.String())
	}
	return nil
}

// blankImages stands for the registry: every image with a tag exists, and says
// nothing of itself. One without a tag is not pinned, or is the name of a stage
// misspelt.
type blankImages struct{}

func (blankImages) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	if strings.HasSuffix(ref, ":latest") {
		return "", "", nil, fmt.Errorf("there is no stage of this name, and as an image it is not pinned: %s", ref)
	}
	return ref, "", []byte(`{"os": "linux", "architecture": "amd64"}`), nil
}
