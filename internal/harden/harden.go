// Package harden keeps the memory of a process that holds secrets to itself, as far
// as the operating system lets it: no core dumps, and no other process of the
// same user looks into it.
package harden
