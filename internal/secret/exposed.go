package secret

import "os"

// Exposed reports whether the mode of a file lets every user of the machine read or
// write it. Access by the group does not count, because Kubernetes grants the group of
// a pod access to its files. The result is false if the file cannot be examined.
func Exposed(path string) bool {
	const others = 0o006
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&others != 0
}
