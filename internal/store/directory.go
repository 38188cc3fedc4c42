package store

import "os"

// SyncDirectory makes a file that was created or renamed in the directory durable.
// Errors are ignored: some file systems cannot sync a directory and need not.
func SyncDirectory(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
