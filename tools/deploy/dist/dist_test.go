// Package dist tests the files of a release. It makes them twice, in directories and
// environments that differ, and examines them as users get them.
package dist

import (
	"archive/tar"
	"compress/gzip"
	"debug/buildinfo"
	"debug/elf"
	"debug/macho"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const root = "../../.."

// platforms are the platforms of a release; with -short only that of the tests.
func platforms() []string {
	if testing.Short() {
		return []string{"linux/" + runtime.GOARCH}
	}
	return []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}
}

// release is a directory with the files of a release, and the checkout that they are made of.
type release struct {
	checkout, dir, version string
}

func TestRelease(t *testing.T) {
	// Copies, so that nobody changes them meanwhile.
	checkout := copyCheckout(t, root)
	first := makeRelease(t, checkout, "umask 022")
	t.Run("reproducible", func(t *testing.T) {
		second := makeRelease(t, copyCheckout(t, checkout), "umask 077", "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "TOKENBROKER_ADDR=example.com:1")
		if got, want := read(t, second.dir, "SHA256SUMS"), read(t, first.dir, "SHA256SUMS"); got != want {
			t.Errorf("the digests differ:\n%s\n%s", want, got)
		}
	})
	t.Run("files", first.testFiles)
	for _, platform := range platforms() {
		system, arch, _ := strings.Cut(platform, "/")
		t.Run("archive "+platform, func(t *testing.T) { first.testArchive(t, system, arch) })
		if system == "linux" {
			t.Run("package "+arch, func(t *testing.T) { first.testPackage(t, arch) })
		}
	}
	t.Run("package installs", first.testInstall)
}

// copyCheckout copies a checkout with the changes that are not committed.
func copyCheckout(t *testing.T, checkout string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "bash", "-c", `set -eo pipefail
		cd "$1"
		cp -r "$(git rev-parse --absolute-git-dir)" "$2/.git"
		git ls-files -z --cached --others --exclude-standard | tar -c --null --ignore-failed-read --files-from=- | tar -x -C "$2"
		git -C "$2" reset --quiet`, "bash", checkout, dir)
	return dir
}

// makeRelease makes the release of a checkout.
func makeRelease(t *testing.T, checkout, umask string, env ...string) *release {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	args := []string{"-c", umask + ` && exec "$1/tools/dist.sh" "${@:2}"`, "bash", checkout, out}
	if testing.Short() {
		args = append(args, platforms()...)
	}
	cmd := exec.Command("bash", args...)
	cmd.Env = append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	suffix := "_linux_" + runtime.GOARCH + ".tar.gz"
	archives, err := filepath.Glob(filepath.Join(out, "tokenbroker_*"+suffix))
	if err != nil || len(archives) != 1 {
		t.Fatalf("archives for this platform: %v, %v", archives, err)
	}
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archives[0]), "tokenbroker_"), suffix)
	return &release{checkout, out, version}
}

func (r *release) testFiles(t *testing.T) {
	want := []string{"SHA256SUMS"}
	for _, platform := range platforms() {
		name := "tokenbroker_" + r.version + "_" + strings.ReplaceAll(platform, "/", "_")
		want = append(want, name+".tar.gz", name+".cdx.json")
		if arch, found := strings.CutPrefix(platform, "linux/"); found {
			want = append(want, filepath.Base(r.deb(arch)))
		}
	}
	slices.Sort(want)
	var got []string
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = r.dir
	if text, err := cmd.CombinedOutput(); err != nil || strings.Count(string(text), ": OK\n") != len(want)-1 {
		t.Errorf("%v\n%s", err, text)
	}
}

func (r *release) testArchive(t *testing.T, system, arch string) {
	name := "tokenbroker_" + r.version + "_" + system + "_" + arch
	dir := filepath.Join(r.unpack(t, name), name)
	for _, file := range []string{
		"LICENSE", "THIRD_PARTY_LICENSES", "README.md", "CHANGELOG.md", "broker.example.yaml",
		"man/broker.1", "man/broker-secret-rotate.1", "completions/broker.bash", "completions/_broker", "completions/broker.fish",
	} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	if bash := read(t, dir, "completions/broker.bash"); strings.Contains(bash, "example.com") {
		t.Error("the environment is in the completions")
	}
	info := r.checkBinary(t, filepath.Join(dir, "broker"), system, arch)
	if strings.TrimPrefix(info.Main.Version, "v") != r.version {
		t.Errorf("the version of the binary is %s, of the archive %s", info.Main.Version, r.version)
	}
	licences := read(t, dir, "THIRD_PARTY_LICENSES")
	var bill struct {
		Components []struct{ Name, Version string }
	}
	if err := json.Unmarshal([]byte(read(t, r.dir, name+".cdx.json")), &bill); err != nil {
		t.Fatal(err)
	}
	for _, module := range info.Deps {
		if !strings.Contains(licences, "\n"+module.Path+" "+module.Version+": ") {
			t.Errorf("there is no licence of %s", module.Path)
		}
		if !slices.Contains(bill.Components, struct{ Name, Version string }{module.Path, module.Version}) {
			t.Errorf("%s is not in the SBOM", module.Path)
		}
	}
	if len(info.Deps) < 20 || len(bill.Components) > len(info.Deps)+1 { // and Go
		t.Errorf("%d modules, %d components", len(info.Deps), len(bill.Components))
	}
}

// unpack unpacks an archive and checks what tells where and when it was made.
func (r *release) unpack(t *testing.T, name string) string {
	t.Helper()
	file, err := os.Open(filepath.Join(r.dir, name+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	zipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if !zipped.ModTime.IsZero() || zipped.Name != "" {
		t.Errorf("gzip's header has %v, %q", zipped.ModTime, zipped.Name)
	}
	made, err := time.Parse(time.RFC3339, strings.TrimSpace(run(t, "git", "-C", r.checkout, "log", "-1", "--format=%cI")))
	if err != nil {
		t.Fatal(err)
	}
	for archive := tar.NewReader(zipped); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		executable := header.FileInfo().IsDir() || header.Name == name+"/broker"
		if mode := header.Mode & 0o777; header.Uid != 0 || header.Gid != 0 || header.Uname != "" || header.Gname != "" ||
			!header.ModTime.Equal(made) || executable != (mode == 0o755) || !executable != (mode == 0o644) {
			t.Errorf("%s: %d:%d %s:%s %o %v", header.Name, header.Uid, header.Gid, header.Uname, header.Gname, mode, header.ModTime)
		}
	}
	dir := t.TempDir()
	run(t, "tar", "-xzf", file.Name(), "-C", dir)
	return dir
}

// checkBinary checks that a binary is for a platform, static and stripped.
func (r *release) checkBinary(t *testing.T, file, system, arch string) *buildinfo.BuildInfo {
	t.Helper()
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	head := strings.TrimSpace(run(t, "git", "-C", r.checkout, "rev-parse", "HEAD"))
	for key, want := range map[string]string{"GOOS": system, "GOARCH": arch, "CGO_ENABLED": "0", "-trimpath": "true", "vcs.revision": head} {
		if settings[key] != want {
			t.Errorf("%s is %q, want %q", key, settings[key], want)
		}
	}
	if system == "darwin" {
		program, err := macho.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = program.Close() }()
		if program.Section("__debug_info") != nil || program.Section("__zdebug_info") != nil {
			t.Error("it has debugging information")
		}
		return info
	}
	program, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = program.Close() }()
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("it needs a dynamic linker")
	}
	if program.Section(".symtab") != nil || program.Section(".debug_info") != nil {
		t.Error("it is not stripped")
	}
	return info
}

func (r *release) testPackage(t *testing.T, arch string) {
	file := r.deb(arch)
	for field, want := range map[string]string{"Package": "tokenbroker", "Architecture": arch, "Version": strings.ReplaceAll(r.version, "-", "~")} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "--field", file, field)); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	for line := range strings.Lines(run(t, "dpkg-deb", "--contents", file)) {
		if !strings.Contains(line, " root/root ") {
			t.Errorf("the owner is not root: %s", line)
		}
	}
	dir := t.TempDir()
	run(t, "dpkg-deb", "--extract", file, dir)
	r.checkBinary(t, filepath.Join(dir, "usr/bin/broker"), "linux", arch)
	unit := read(t, dir, "usr/lib/systemd/system/tokenbroker.service")
	if !strings.Contains(unit, "\nExecStart=/usr/bin/broker serve ") || strings.Contains(unit, "/usr/local") {
		t.Errorf("the unit does not run the binary of the package:\n%s", unit)
	}
	for _, name := range []string{
		"usr/lib/sysusers.d/tokenbroker.conf", "usr/share/man/man1/broker.1.gz", "usr/share/man/man1/broker-get.1.gz",
		"usr/share/bash-completion/completions/broker", "usr/share/zsh/vendor-completions/_broker",
		"usr/share/fish/vendor_completions.d/broker.fish", "usr/share/doc/tokenbroker/examples/broker.yaml",
		"usr/share/doc/tokenbroker/README.md", "usr/share/doc/tokenbroker/copyright", "etc/tokenbroker",
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func (r *release) deb(arch string) string {
	return filepath.Join(r.dir, "tokenbroker_"+r.version+"_"+arch+".deb")
}

// testInstall installs and removes the package in a directory that stands in for a host.
func (r *release) testInstall(t *testing.T) {
	if _, err := exec.LookPath("systemd-sysusers"); err != nil || os.Getuid() != 0 {
		message := "a package is installed by root, and needs systemd: run the test as root after: apt-get install systemd"
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	host := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"} {
		if err := os.MkdirAll(filepath.Join(host, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for file, content := range map[string]string{"var/lib/dpkg/status": "", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n"} {
		if err := os.WriteFile(filepath.Join(host, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + host, "--force-script-chrootless", "--force-depends", "--force-architecture"}, args...)...)
	}
	dpkg("--install", r.deb(runtime.GOARCH))
	if !strings.Contains(read(t, host, "etc/passwd"), "\ntokenbroker:") {
		t.Error("there is no user tokenbroker")
	}
	info, err := os.Stat(filepath.Join(host, "etc/tokenbroker"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o750 {
		t.Errorf("the mode of /etc/tokenbroker is %v", info.Mode())
	}
	version := run(t, filepath.Join(host, "usr/bin/broker"), "version", "--json")
	if !strings.Contains(version, `"version":"v`+r.version+`"`) {
		t.Errorf("the installed broker is %s", version)
	}
	dpkg("--install", r.deb(runtime.GOARCH)) // again, as an upgrade does
	dpkg("--purge", "tokenbroker")
	if _, err := os.Stat(filepath.Join(host, "usr/bin/broker")); !os.IsNotExist(err) {
		t.Errorf("the binary is still there: %v", err)
	}
}

// A module whose licence is unknown must not be given to others.
func TestModuleWithoutLicenceIsRefused(t *testing.T) {
	dir := t.TempDir()
	for file, content := range map[string]string{
		"main.go":      "package main\n\nimport _ \"example.com/other/copied/code\"\n\nfunc main() {}\n",
		"go.mod":       "module example.com/program\n\ngo 1.26.0\n\nrequire example.com/other v1.0.0\n\nreplace example.com/other => ./other\n",
		"other/go.mod": "module example.com/other\n\ngo 1.26.0\n",

		"other/copied/code/it.go":  "package code\n",
		"other/copied/LICENSE":     "Copied.",
		"other/unused/LICENSE.txt": "Not linked.",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs(root + "/tools/licenses.sh")
	if err != nil {
		t.Fatal(err)
	}
	licences := func() (string, error) {
		cmd := exec.Command(script, ".", "linux/amd64")
		cmd.Dir = dir
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	if text, err := licences(); err == nil || !strings.Contains(text, "example.com/other v1.0.0 has no licence") {
		t.Errorf("without a licence: %v\n%s", err, text)
	}
	if err := os.WriteFile(filepath.Join(dir, "other/Licence.txt"), []byte("You may."), 0o644); err != nil {
		t.Fatal(err)
	}
	text, err := licences()
	for _, want := range []string{"\nexample.com/other v1.0.0: Licence.txt\n\nYou may.", "\nexample.com/other v1.0.0: copied/LICENSE\n\nCopied."} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("with a licence there is no %q: %v\n%s", want, err, text)
		}
	}
	if strings.Contains(text, "Not linked") {
		t.Errorf("the licence of a package that is not linked: %s", text)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	text, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, text)
	}
	return string(text)
}

func read(t *testing.T, dir, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
