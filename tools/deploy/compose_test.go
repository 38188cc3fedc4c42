package deploy

import (
	"bytes"
	"context"
	"fmt"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/sirupsen/logrus"
)

// checkCompose returns the project that the file at path describes. It takes
// nothing from the environment or from an .env file, so that a variable without
// a default is found. Services that are started only on request are in it too.
func checkCompose(ctx context.Context, path string) (any, error) {
	var warnings bytes.Buffer
	logrus.SetOutput(&warnings)
	options, err := cli.NewProjectOptions([]string{path}, cli.WithProfiles([]string{"*"}))
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(ctx)
	if err != nil {
		return nil, err
	}
	if warnings.Len() > 0 {
		return nil, fmt.Errorf("there are warnings:\n%s", &warnings)
	}
	return project, nil
}
