package store

import "os"

// syncDirectory makes a file that was created or renamed in the directory last.
// Some file systems cannot, and need not.
func syncDirectory(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
