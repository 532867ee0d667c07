package userspace

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// shared lets a port be open for all addresses and for single ones at the same time: the
// single ones have what is sent to them.
var shared = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	if err != nil {
		return err
	}
	return failed
}}
