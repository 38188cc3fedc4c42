package secret_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for content, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", " hunter2 \n\n": " hunter2 \n",
	} {
		write(t, path, content)
		source, err := open(t, "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		if got := source.Current().Value.Reveal(); got != want {
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
	source, err := open(t, "env:TOKENBROKER_TEST_SECRET")
	if err != nil || source.Current().Value.Reveal() != "from-env" {
		t.Errorf("env: %v", err)
	}
}

// values are the values of a source, in order.
func values(source *secret.Source) string {
	all := make([]string, 0, 2)
	for _, v := range source.Versions() {
		all = append(all, v.Value.Reveal())
	}
	return strings.Join(all, " ")
}

// reload reads a source twice, as two polls do.
func reload(t *testing.T, source *secret.Source) {
	t.Helper()
	for range 2 {
		if _, err := source.Reload(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryHasTheCurrentAndThePreviousValue(t *testing.T) {
	dir := t.TempDir()
	if _, err := open(t, "file:"+dir); err == nil {
		t.Error("an empty directory is no error")
	}
	write(t, filepath.Join(dir, "current"), "one\n")
	source, err := open(t, "file:"+dir)
	if err != nil || values(source) != "one" {
		t.Fatalf("%v, %v", values(source), err)
	}
	write(t, filepath.Join(dir, "current"), "two\n")
	write(t, filepath.Join(dir, "previous"), "one\n")
	if reload(t, source); values(source) != "two one" {
		t.Errorf("after the change: %s", values(source))
	}
	write(t, filepath.Join(dir, "previous"), "")
	if _, err := source.Reload(); err == nil || values(source) != "two one" {
		t.Errorf("an empty file: %v, %s", err, values(source))
	}
	if err := os.Remove(filepath.Join(dir, "previous")); err != nil {
		t.Fatal(err)
	}
	if reload(t, source); values(source) != "two" {
		t.Errorf("without the previous one: %s", values(source))
	}
}

func TestChangedFileCountsAfterTwoPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "secret")
		write(t, path, "one")
		source, err := open(t, "file:"+path)
		if err != nil {
			t.Fatal(err)
		}
		first := source.Current()
		ctx, stop := context.WithCancel(t.Context())
		notified := make(chan error, 100)
		sources := func() []*secret.Source { return []*secret.Source{source} }
		go secret.Poll(ctx, sources, func(_ *secret.Source, err error) { notified <- err })
		defer synctest.Wait()
		defer stop()
		poll := func() { time.Sleep(secret.PollInterval); synctest.Wait() }

		poll()
		write(t, path, "") // emptied: half written, perhaps
		poll()
		if source.Current() != first {
			t.Fatal("an empty file replaced the secret")
		}
		if err := <-notified; err == nil {
			t.Error("the empty file was not reported")
		}
		write(t, path, "two")
		poll()
		if source.Current() != first {
			t.Fatal("a value counted after it was read once")
		}
		poll()
		second := source.Current()
		if second.Value.Reveal() != "two" || second.ID == first.ID {
			t.Fatalf("after two polls the version is %+v", second)
		}
		if err := <-notified; err != nil {
			t.Errorf("notified of %v", err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		poll()
		if source.Current() != second {
			t.Error("deletion of the file took the secret away")
		}
	})
}

func TestValueThatIsStillBeingWrittenDoesNotCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "one")
	source, err := open(t, "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"t", "tw", "", "tw", "two"} { // as polls happen to see it
		write(t, path, content)
		_, _ = source.Reload()
		if values(source) != "one" {
			t.Fatalf("after %q: %s", content, values(source))
		}
	}
	if reload(t, source); values(source) != "two" {
		t.Errorf("when it is whole: %s", values(source))
	}
}

// change is a way in which the value of a file becomes another.
type change struct {
	open func(t *testing.T, dir string) (path string) // with the value v1
	to   func(t *testing.T, dir string)               // the value v2
	want string
}

func swap(t *testing.T, target, link string) {
	t.Helper()
	temp := link + ".tmp"
	if err := os.Symlink(target, temp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, link); err != nil {
		t.Fatal(err)
	}
}

func release(t *testing.T, dir, name string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name, "secret"), name)
	return name
}

// With real files: each change is picked up, or rightly not, within two polls.
func TestEveryWayInWhichAFileChanges(t *testing.T) {
	for name, tt := range map[string]change{
		"Kubernetes: ..data is swapped and the old directory removed": {
			func(t *testing.T, dir string) string {
				swap(t, release(t, dir, "v1"), filepath.Join(dir, "..data"))
				swap(t, "..data/secret", filepath.Join(dir, "secret"))
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) {
				swap(t, release(t, dir, "v2"), filepath.Join(dir, "..data"))
				if err := os.RemoveAll(filepath.Join(dir, "v1")); err != nil {
					t.Fatal(err)
				}
			},
			"v2",
		},
		"blue/green: the link changes and the old target stays": {
			func(t *testing.T, dir string) string {
				release(t, dir, "v1")
				swap(t, release(t, dir, "v2"), filepath.Join(dir, "green"))
				swap(t, "v1/secret", filepath.Join(dir, "secret"))
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) { swap(t, "v2/secret", filepath.Join(dir, "secret")) },
			"v2",
		},
		"subPath: another inode is mounted over, as by a rename": {
			func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "secret"), "v1")
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) {
				write(t, filepath.Join(dir, "new"), "v2")
				if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "secret")); err != nil {
					t.Fatal(err)
				}
			},
			"v2",
		},
		"written in place": {
			func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "secret"), "v1")
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) { write(t, filepath.Join(dir, "secret"), "v2") },
			"v2",
		},
		"written in place with the same size and time": {
			func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "secret"), "v1")
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) {
				path := filepath.Join(dir, "secret")
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				write(t, path, "v2")
				if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
					t.Fatal(err)
				}
			},
			"v2",
		},
		"deleted": {
			func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "secret"), "v1")
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "secret")); err != nil {
					t.Fatal(err)
				}
			},
			"v1",
		},
		"emptied": {
			func(t *testing.T, dir string) string {
				write(t, filepath.Join(dir, "secret"), "v1")
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) { write(t, filepath.Join(dir, "secret"), "\n") },
			"v1",
		},
		"a link that leads nowhere": {
			func(t *testing.T, dir string) string {
				release(t, dir, "v1")
				swap(t, "v1/secret", filepath.Join(dir, "secret"))
				return filepath.Join(dir, "secret")
			},
			func(t *testing.T, dir string) { swap(t, "v3/secret", filepath.Join(dir, "secret")) },
			"v1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			source, err := open(t, "file:"+tt.open(t, dir))
			if err != nil || values(source) != "v1" {
				t.Fatalf("%s, %v", values(source), err)
			}
			tt.to(t, dir)
			for range 2 {
				_, err = source.Reload()
			}
			if values(source) != tt.want || (err == nil) != (tt.want == "v2") {
				t.Errorf("%s, %v", values(source), err)
			}
		})
	}
}
