// Command deploycheck reads a file that describes a deployment as the engine
// would, without an engine and without a network, and prints what it comes to
// as JSON, for tests to judge:
//
//	deploycheck compose FILE     the project: extensions merged, defaults filled in
//	deploycheck dockerfile FILE  the stages, each with the configuration of its image
//
// It is strict: what the engine would only warn of is a failure. The exit code
// is 0 if the file is good, 1 if it is not, 2 if deploycheck was called wrongly.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:])) //nolint:forbidigo // here is where errors are returned to
}

func run(args []string) int {
	checks := map[string]func(ctx context.Context, path string) (any, error){
		"compose":    checkCompose,
		"dockerfile": checkDockerfile,
	}
	if len(args) != 2 || checks[args[0]] == nil {
		fmt.Fprintln(os.Stderr, "usage: deploycheck compose|dockerfile FILE")
		return 2
	}
	found, err := checks[args[0]](context.Background(), args[1])
	if err == nil {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		err = out.Encode(found)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[1], err)
		return 1
	}
	return 0
}
