// Package archtest holds the test that keeps the direction of imports: who may
// know whom within this module, and who may know which library. It has no code
// of its own.
package archtest
