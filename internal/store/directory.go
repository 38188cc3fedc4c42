package store

import "os"

// SyncDirectory makes a file that was created or renamed in the directory last.
// Some file systems cannot, and need not.
func SyncDirectory(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
