package edge

import (
	"fmt"
	"os"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if address := os.Getenv(bareVariable); address != "" {
		fmt.Fprintln(os.Stderr, serveBare(address))
		return 1
	}
	return harness.Main(m)
}
