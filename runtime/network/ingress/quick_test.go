package ingress

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// quickPair is a quick connection and its other end.
func quickPair(t *testing.T) (q, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if other, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	q = quick(c)
	t.Cleanup(func() { _ = q.Close() })
	if _, ok := q.(*quickConn); !ok {
		t.Fatalf("a %T", q)
	}
	return q, other
}

func TestQuickConn(t *testing.T) {
	t.Run("more than fits", func(t *testing.T) {
		q, other := quickPair(t)
		sent := make([]byte, 20<<20)
		_, _ = rand.Read(sent)
		written := make(chan error, 1)
		go func() {
			n, err := q.Write(sent)
			if err == nil && n != len(sent) {
				err = io.ErrShortWrite
			}
			written <- errors.Join(err, q.Close())
		}()
		back := make(chan error, 1)
		go func() {
			_, err := io.Copy(struct{ io.Writer }{other}, bytes.NewReader(sent))
			back <- errors.Join(err, other.(*net.TCPConn).CloseWrite())
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(q, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("read: %v, the same: %t", err, bytes.Equal(got, sent))
		}
		if n, err := q.Read(got); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
		if err := <-back; err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes arrived: %v", len(got), err)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
	t.Run("deadlines", func(t *testing.T) {
		q, _ := quickPair(t)
		if err := q.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for what, do := range map[string]func([]byte) (int, error){"read": q.Read, "write": q.Write} {
			var n int
			var err error
			for err == nil {
				n, err = do(make([]byte, 1<<20))
			}
			var timeout net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("%s: %d, %v", what, n, err)
			}
		}
	})
	t.Run("closed while it waits", func(t *testing.T) {
		q, _ := quickPair(t)
		ended := make(chan error, 1)
		go func() {
			_, err := q.Read(make([]byte, 1))
			ended <- err
		}()
		_ = q.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := q.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Run("broken off", func(t *testing.T) {
		q, other := quickPair(t)
		if err := other.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = other.Close()
		if n, err := q.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := q.Write([]byte("x")); n != 0 || !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("nothing asked for", func(t *testing.T) {
		q, _ := quickPair(t)
		if n, err := q.Read(nil); n != 0 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		if n, err := q.Write(nil); n != 0 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
}
