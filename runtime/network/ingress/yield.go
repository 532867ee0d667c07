package ingress

import _ "unsafe" // for go:linkname

// goyield gives the other goroutines of this processor their turn, and with it begins a new
// slice of time, as runtime.Gosched does, but wakes no thread to look whether there
// is something to do. It is the runtime's own; that it stays is promised to those who use
// it by its name (go.dev/issue/67401).
//
//go:linkname goyield runtime.goyield
func goyield()
