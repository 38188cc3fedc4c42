package secret_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, ref string) (*secret.Ring, error) {
	t.Helper()
	parsed, err := secret.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Open(parsed)
}

func TestParseRefRefusesLiteralsWithoutRepeatingThem(t *testing.T) {
	for _, bad := range []string{"", "hunter2", "file:", "env:", "vault:x", "hunter2:file"} {
		_, err := secret.ParseRef(bad)
		if err == nil {
			t.Errorf("ParseRef(%q) was accepted", bad)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message repeats what may be the secret: %v", err)
		}
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for content, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", " hunter2 \n\n": " hunter2 \n",
	} {
		write(t, path, content)
		ring, err := open(t, "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		if got := ring.Current().Value.Reveal(); got != want {
			t.Errorf("content %q is read as %q, want %q", content, got, want)
		}
	}
	for name, content := range map[string]string{"empty": "", "only a line end": "\n", "too large": strings.Repeat("x", 16<<10+1)} {
		write(t, path, content)
		if _, err := open(t, "file:"+path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := open(t, "file:"+path+".absent"); err == nil {
		t.Error("an absent file is no error")
	}
	if _, err := open(t, "env:TOKENBROKER_TEST_ABSENT"); err == nil {
		t.Error("an unset variable is no error")
	}
	t.Setenv("TOKENBROKER_TEST_SECRET", "from-env")
	ring, err := open(t, "env:TOKENBROKER_TEST_SECRET")
	if err != nil || ring.Current().Value.Reveal() != "from-env" {
		t.Errorf("env: %v", err)
	}
}

func TestChangedFileIsInForceAfterTwoPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "secret")
		write(t, path, "one")
		ring, err := open(t, "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		first := ring.Current()
		ctx, stop := context.WithCancel(t.Context())
		told := make(chan error, 100)
		go secret.Poll(ctx, []*secret.Ring{ring}, func(_ *secret.Ring, err error) { told <- err })
		defer synctest.Wait()
		defer stop()
		poll := func() { time.Sleep(secret.PollInterval); synctest.Wait() }

		poll()
		write(t, path, "") // emptied: half written, perhaps
		poll()
		if ring.Current() != first {
			t.Fatal("an empty file replaced the secret")
		}
		if err := <-told; err == nil {
			t.Error("the empty file was not told of")
		}
		write(t, path, "two")
		poll()
		if ring.Current() != first {
			t.Fatal("a value counted after it was read once")
		}
		poll()
		second := ring.Current()
		if second.Value.Reveal() != "two" || second.ID == first.ID {
			t.Fatalf("after two polls the version is %+v", second)
		}
		if err := <-told; err != nil {
			t.Errorf("told of %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		poll()
		if ring.Current() != second {
			t.Error("deletion of the file took the secret away")
		}
	})
}

func TestKubernetesSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, v, "secret"), v)
	}
	link := func(target string) {
		t.Helper()
		tmp := filepath.Join(dir, "tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	link("v1")
	ring, err := open(t, "file:"+filepath.Join(dir, "..data", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	link("v2")
	for range 2 {
		if _, err := ring.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	if got := ring.Current().Value.Reveal(); got != "v2" {
		t.Errorf("after the swap: %q", got)
	}
}

func TestVersionDoesNotPrintItsValue(t *testing.T) {
	t.Setenv("TOKENBROKER_TEST_SECRET", "canary-secret")
	ring, err := open(t, "env:TOKENBROKER_TEST_SECRET")
	if err != nil {
		t.Fatal(err)
	}
	if out := fmt.Sprintf("%v %+v %#v", ring, ring.Current(), ring.Current()); strings.Contains(out, "canary-secret") {
		t.Errorf("printed: %s", out)
	}
}
