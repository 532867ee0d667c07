//go:build !race

package ingress

import (
	"syscall"
	"unsafe"
)

func rawRead(fd int, b []byte) (int, error)  { return rawCall(syscall.SYS_READ, fd, b) }
func rawWrite(fd int, b []byte) (int, error) { return rawCall(syscall.SYS_WRITE, fd, b) }

func rawCall(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
