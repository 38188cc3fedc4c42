//go:build !linux

package main

// protectMemory does nothing: it is implemented on Linux only.
func protectMemory() error { return nil }
