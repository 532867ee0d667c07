package ingress

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// usually is how long a pod takes to answer at most: a client that goes away is noticed
// only after that.
const usually = 100 * time.Millisecond

// watcher looks after the requests that take longer than usual: if their clients go away,
// what the pods do for them is ended. One timer is for all requests, and set only while
// there are some: one for each would with every request wake the thread that waits for the
// network, to wait less long.
type watcher struct {
	mu    sync.Mutex
	since map[*clientConn]time.Time // requests that are not watched yet
	timer *time.Timer               // nil while it is not set
}

// add begins to look after the request of a connection.
func (w *watcher) add(c *clientConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since == nil {
		w.since = map[*clientConn]time.Time{}
	}
	w.since[c] = time.Now()
	if w.timer == nil {
		w.timer = time.AfterFunc(usually, w.look)
	}
}

// remove ends that, unless the connection is watched already.
func (w *watcher) remove(c *clientConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.since, c)
}

// look watches the connections whose requests take longer than usual.
func (w *watcher) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, since := range w.since {
		if time.Since(since) >= usually && c.watch() {
			delete(w.since, c)
		}
	}
	w.timer = nil
	if len(w.since) > 0 {
		w.timer = time.AfterFunc(usually, w.look)
	}
}

// watched is a client that may go away while its request is answered.
type watched struct {
	mu       sync.Mutex
	pod      net.Conn      // that works for the client; nil while none does
	watching chan struct{} // closed when nobody reads from the client any more; nil if nobody does
	gone     bool          // the client
}

// setPod says which pod works for the client, nil for none, and whether the client is still
// there.
func (c *clientConn) setPod(pod net.Conn) (here bool) {
	w := &c.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pod = pod
	return !w.gone
}

// watch reads from the client until it goes away, or sends the next request, or unwatch ends
// it. Nobody else reads c.in meanwhile. It is not begun before the request has been sent.
func (c *clientConn) watch() (begun bool) {
	w := &c.watched
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == nil {
		return false
	}
	_ = c.SetReadDeadline(time.Time{})
	watching := make(chan struct{})
	w.watching = watching
	go func() {
		defer close(watching)
		if _, err := c.in.Peek(1); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.gone = true
		if w.pod != nil {
			_ = w.pod.Close()
		}
	}()
	return true
}

// unwatch ends that, and says whether the client has gone away.
func (c *clientConn) unwatch() (gone bool) {
	c.srv.watcher.remove(c)
	w := &c.watched
	w.mu.Lock()
	w.pod = nil
	watching := w.watching
	w.watching = nil
	w.mu.Unlock()
	if watching != nil {
		_ = c.SetReadDeadline(past)
		<-watching
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gone
}
