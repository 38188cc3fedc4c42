package app

import (
	"runtime"
	"runtime/debug"
)

// Build describes how this program was built. Commit and CommitTime are empty if the go
// command could not read them from a git checkout.
type Build struct {
	Version    string `json:"version"`
	Commit     string `json:"commit"`
	CommitTime string `json:"commit_time"`
	Modified   bool   `json:"modified"` // the checkout had changes that were not committed
	GoVersion  string `json:"go_version"`
	Platform   string `json:"platform"`
}

// ReadBuild returns the description that the go command put into this program.
func ReadBuild() Build {
	b := Build{Version: Version(), GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Commit = setting.Value
		case "vcs.time":
			b.CommitTime = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	return b
}
