//go:build race

package ingress

import "syscall"

// The race detector knows of these calls that what happened before a write has happened
// before the read at the other end, which is how tests and what they test wait for each
// other.
var rawRead, rawWrite = syscall.Read, syscall.Write
