package deploy

import (
	"os"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
