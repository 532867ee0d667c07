package main

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// sctpPatience bounds every step of a client, in seconds.
const sctpPatience = 5

// sctpSocket makes a socket that is used as one of TCP is (RFC 6458, 4).
func sctpSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return fd, nil
}

// uninterrupted calls again what a signal has interrupted: of a call on a socket with a time
// limit the kernel does not (signal(7)), and Go sends itself signals.
func uninterrupted(call func() (int, error)) (n int, err error) {
	err = unix.EINTR
	for err == unix.EINTR {
		n, err = call()
	}
	return n, err
}

func sctpAddress(s string) (*unix.SockaddrInet4, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || !a.Addr().Is4() {
		return nil, fmt.Errorf("%q is not an IPv4 address and a port", s)
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, nil
}

// sctpServe says to everybody who asks by SCTP who has asked whom, and sends back what
// was said.
func sctpServe(port string) error {
	at, err := sctpAddress("0.0.0.0:" + port)
	if err != nil {
		return err
	}
	fd, err := sctpSocket()
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, at); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, 100); err != nil {
		return os.NewSyscallError("listen", err)
	}
	fmt.Println("listening by SCTP")
	host, _ := os.Hostname()
	for {
		conn, peer, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		go func() {
			defer unix.Close(conn)
			client := "?"
			if p, ok := peer.(*unix.SockaddrInet4); ok {
				client = netip.AddrFrom4(p.Addr).String()
			}
			buf := make([]byte, 64<<10)
			for {
				n, err := unix.Read(conn, buf)
				if n <= 0 || err != nil {
					return
				}
				if _, err := unix.Write(conn, fmt.Appendf(nil, "%s asked by %s: %d bytes", host, client, n)); err != nil {
					return
				}
			}
		}()
	}
}

// sctpAsk asks a server by SCTP and prints what it says: a short message and one of
// many packets.
func sctpAsk(address string) error {
	to, err := sctpAddress(address)
	if err != nil {
		return err
	}
	fd, err := sctpSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := &unix.Timeval{Sec: sctpPatience}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, limit); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	// A connect that is interrupted goes on by itself, and what is sent waits for it.
	if err := unix.Connect(fd, to); err != nil && err != unix.EINTR {
		return fmt.Errorf("connect to %s by SCTP: %w", address, err)
	}
	buf := make([]byte, 256)
	for _, size := range []int{5, 20000} {
		if _, err := uninterrupted(func() (int, error) { return unix.Write(fd, make([]byte, size)) }); err != nil {
			return fmt.Errorf("send %d bytes to %s by SCTP: %w", size, address, err)
		}
		n, err := uninterrupted(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil {
			return fmt.Errorf("receive from %s by SCTP: %w", address, err)
		}
		fmt.Println(string(buf[:n]))
	}
	return nil
}
