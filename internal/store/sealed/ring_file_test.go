package sealed_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// openRing makes a file with a ring and opens it.
func openRing(t testing.TB, ring *sealed.Ring) *sealed.RingFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ring.json")
	writeRing(t, path, ring)
	file, err := sealed.OpenRing(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func writeRing(t testing.TB, path string, ring *sealed.Ring) {
	t.Helper()
	if err := sealed.WriteRing(path, ring); err != nil {
		t.Fatal(err)
	}
}

// reload reads the ring of the file until it is in force.
func reload(t testing.TB, file *sealed.RingFile) {
	t.Helper()
	for range 2 {
		changed, err := file.Reload()
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			return
		}
	}
	t.Fatal("the changed ring is not in force after two reads")
}

func TestRingFile_errorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	for name, c := range map[string]struct{ path, want string }{
		"directory":   {dir, "is a directory: name the file in it"},
		"absent":      {filepath.Join(dir, "absent"), "does not exist: make it with `broker ring new > "},
		"a directory": {dir, "is a directory"},
		"empty":       {file("empty", ""), "is empty: make it with `broker ring new > "},
		"broken":      {file("broken", "{"), "it is not JSON"},
		"too short":   {file("short", ringText(namesKey, "0a1b2c3d", `"0a1b2c3d": "AAAA"`)), "key 0a1b2c3d has 3 bytes: it must have 32"},
		"huge":        {file("huge", strings.Repeat("x", 1<<20)), "is it a ring?"},
	} {
		_, err := sealed.OpenRing(c.path)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, again := sealed.ReadRing(c.path); again == nil || again.Error() != err.Error() {
			t.Errorf("%s: read once: %v", name, again)
		}
	}
	secret := file("secret", goodRing)
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.OpenRing(secret); os.Getuid() != 0 && (err == nil || !strings.Contains(err.Error(), "may not be read")) {
		t.Errorf("unreadable: %v", err)
	}
}

func TestRingFile_changeNeedsTwoReads(t *testing.T) {
	first := sealed.GenerateRing()
	file := openRing(t, first)
	second, id := first.Add()

	content := string(second.Reveal())
	writeFile(t, file.Path(), content[:len(content)/2]) // half written
	if changed, err := file.Reload(); changed || err != nil {
		t.Errorf("half a file that was read once: %v, %v", changed, err)
	}
	writeFile(t, file.Path(), content)
	if changed, err := file.Reload(); changed || err != nil || len(file.Current().IDs()) != 1 {
		t.Errorf("a change that was read once: %v, %v", changed, err)
	}
	if changed, err := file.Reload(); !changed || err != nil || len(file.Current().IDs()) != 2 {
		t.Errorf("a change that was read twice: %v, %v", changed, err)
	}
	if changed, err := file.Reload(); changed || err != nil {
		t.Errorf("no change: %v, %v", changed, err)
	}

	promoted, err := second.Promote(id)
	if err != nil {
		t.Fatal(err)
	}
	writeRing(t, file.Path(), promoted)
	reload(t, file)
	if file.Current().Primary() != id {
		t.Errorf("in force is %v", file.Current())
	}
}

func TestRingFile_badRingKeepsTheOld(t *testing.T) {
	first := sealed.GenerateRing()
	other, _ := sealed.GenerateRing().Add()
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  string
	}{
		"removed":           {os.Remove, "does not exist"},
		"emptied":           {func(path string) error { return os.Truncate(path, 0) }, "is empty"},
		"broken":            {func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }, "it is not JSON"},
		"another names key": {func(path string) error { return sealed.WriteRing(path, other) }, "another names key, under which nothing in the store would be found: restore the old one"},
	} {
		t.Run(name, func(t *testing.T) {
			file := openRing(t, first)
			if err := c.spoil(file.Path()); err != nil {
				t.Fatal(err)
			}
			_, _ = file.Reload() // read once
			for range 3 {
				if changed, err := file.Reload(); changed || err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("changed %v, %v, want %q", changed, err, c.want)
				}
			}
			if file.Current().Primary() != first.Primary() {
				t.Error("the ring in force changed")
			}
			writeRing(t, file.Path(), first)
			for range 2 {
				if _, err := file.Reload(); err != nil {
					t.Errorf("put back: %v", err)
				}
			}
		})
	}
}

func TestRingFile_readableByOthers(t *testing.T) {
	file := openRing(t, sealed.GenerateRing())
	if warning := file.Warning(); warning != "" {
		t.Errorf("a file of mode 0600: %q", warning)
	}
	if err := os.Chmod(file.Path(), 0o644); err != nil {
		t.Fatal(err)
	}
	if warning := file.Warning(); !strings.Contains(warning, "make it 0600") || !strings.Contains(warning, file.Path()) {
		t.Errorf("a file of mode 0644: %q", warning)
	}
	if _, err := sealed.OpenRing(file.Path()); err != nil {
		t.Errorf("it is no error: %v", err)
	}
}

func TestWriteRing_symlink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	ring := sealed.GenerateRing()
	writeRing(t, link, ring)
	data, err := os.ReadFile(target)
	if err != nil || string(data) != string(ring.Reveal()) {
		t.Errorf("the target was not replaced: %v", err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := sealed.WriteRing(filepath.Join(dir, "absent", "ring.json"), ring); err == nil {
		t.Error("written to a directory that does not exist")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
