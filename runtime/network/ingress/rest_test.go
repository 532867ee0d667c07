package ingress

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// busy runs a loop that soon has something to do, and then always, until the test ends. It speaks to
// another process, so that no other goroutine is busy.
func busy(t *testing.T) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(ends[1]), "")
	echo := exec.Command("sh", "-c", "sleep 0.05; echo; exec cat") // it waits for less than usually
	echo.Stdin, echo.Stdout = other, other
	if err := errors.Join(unix.SetNonblock(ends[0], true), echo.Start(), other.Close()); err != nil {
		t.Fatal(err)
	}
	seats := &atomic.Int64{}
	seats.Store(1)
	o, err := newLoop(seats)
	if err != nil {
		t.Fatal(err)
	}
	c, err := o.connOf(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	o.admit(newTask(o, c, func() {
		defer c.Close()
		// With the race detector rawRead and rawWrite are others, which give way.
		call := func(number uintptr, b *byte) {
			_, _, _ = unix.RawSyscall(number, uintptr(ends[0]), uintptr(unsafe.Pointer(b)), 1)
		}
		var buf byte
		for c.task.wait(c); c.inLoop(); c.task.wait(c) {
			call(unix.SYS_READ, &buf)
			call(unix.SYS_WRITE, &buf)
		}
	}))
	stop := running(o)
	t.Cleanup(func() {
		stop()
		_ = echo.Wait()
	})
}

// TestLoopYields: a loop that is busy is not interrupted by Go's scheduler, which does so by a
// signal.
func TestLoopYields(t *testing.T) {
	busy(t)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGURG)
	defer signal.Stop(interrupted)
	late := time.After(20 * time.Second)
	for calm := false; !calm; {
		select {
		case <-interrupted:
		case <-time.After(100 * time.Millisecond): // ten times as long as it takes to be interrupted
			calm = true
		case <-late:
			t.Error("interrupted again and again")
			calm = true
		}
	}
}

// TestLoopBusy: other goroutines go on, and timers are kept, while a loop is busy whose thread was
// the one that waited for all of that.
func TestLoopBusy(t *testing.T) {
	busy(t)
	began := time.Now()
	for range 5 {
		<-time.After(100 * time.Millisecond)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("half a second has taken %s", took)
	}
}

// TestLoopRests: a loop is woken by what comes on one of its connections, however many it has.
func TestLoopRests(t *testing.T) {
	for _, conns := range []int{1, parksWith, parksWith + 1} {
		o, err := newLoop(new(atomic.Int64))
		if err != nil {
			t.Fatal(err)
		}
		stop := running(o)
		var others []net.Conn
		for range conns {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			file := os.NewFile(uintptr(ends[1]), "")
			other, err := net.FileConn(file)
			if err = errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			others = append(others, other)
			c, err := o.connOf(ends[0])
			if err != nil {
				t.Fatal(err)
			}
			o.admit(newTask(o, c, func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}))
		}
		for i := range 20 {
			other := others[i*7%conns]
			_ = other.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(other, "ping"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
				t.Fatalf("with %d connections: %v", conns, err)
			}
		}
		for _, other := range others {
			_ = other.Close()
		}
		stop()
	}
}
