// Command testreport reads the output of "go test -json" from its standard input and
// prints one line for each package as it finishes, the output of the tests that failed, and
// at the end the skipped tests, the failed tests and the number of each. The exit
// code is 1 if anything failed.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"
)

// heartbeat is how long the report stays silent while tests run.
const heartbeat = 15 * time.Second

func main() {
	prefix := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		prefix = info.Main.Path + "/"
	}
	failed, err := follow(os.Stdin, newReport(os.Stdout, prefix))
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if failed || err != nil {
		os.Exit(1)
	}
}

// follow reports each line of the input, then the summary. While there is no other
// output, it prints the running tests.
func follow(in io.Reader, r *report) (failed bool, err error) {
	lines := make(chan []byte)
	go func() {
		defer close(lines)
		reader := bufio.NewReader(in)
		for {
			var line []byte
			if line, err = reader.ReadBytes('\n'); len(line) > 0 {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	quiet := time.NewTimer(heartbeat)
	defer quiet.Stop()
	for {
		select {
		case line, more := <-lines:
			if !more {
				r.summarize()
				if errors.Is(err, io.EOF) {
					err = nil
				}
				return r.failed > 0, err
			}
			if r.take(line) {
				quiet.Reset(heartbeat)
			}
		case <-quiet.C:
			r.progress()
			quiet.Reset(heartbeat)
		}
	}
}
