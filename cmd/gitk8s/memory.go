package main

import (
	"runtime/debug"
	"time"
)

// thrifty makes a long-running process prefer memory to processor time: it collects
// garbage at half the usual growth and, once started, gives back what starting took.
func thrifty() {
	debug.SetGCPercent(50)
	time.AfterFunc(5*time.Second, debug.FreeOSMemory)
}
