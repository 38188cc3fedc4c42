package secret

import "os"

// Exposed reports whether every user of the machine may read or replace the file: its
// mode grants that to others. Groups are not judged, because Kubernetes gives the
// files of a pod to its group. A file that cannot be looked at is not exposed.
func Exposed(path string) bool {
	const others = 0o006
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&others != 0
}
