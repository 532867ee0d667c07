package ingress

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// retryListen is when a port that is taken is tried again.
const retryListen = 5 * time.Second

// Front serves on a node's own ports, but only while there is something to serve:
// until then they are free for other ingress controllers.
type Front struct {
	Proxy *Proxy
	// Listen opens the ports; the second listener is for TLS, either may be nil.
	Listen func() (plain, withTLS net.Listener, err error)

	end   context.CancelFunc
	ended chan struct{}
}

// Apply begins or ends to serve as a table asks for. It and Close are called one at a
// time.
func (f *Front) Apply(ctx context.Context, t *Table) {
	switch serving := f.end != nil; {
	case !serving && !t.empty():
		ctx, cancel := context.WithCancel(ctx)
		f.end, f.ended = cancel, make(chan struct{})
		go f.serve(ctx, f.ended)
	case serving && t.empty():
		f.Close()
	}
}

// Close ends to serve, and returns when the ports are free.
func (f *Front) Close() {
	if f.end != nil {
		f.end()
		<-f.ended
		f.end = nil
	}
}

func (f *Front) serve(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	untilServed(ctx, "ingress is not served on this node, will retry", func() error {
		plain, withTLS, err := f.Listen()
		if err != nil {
			return err
		}
		return f.Proxy.Serve(ctx, plain, withTLS)
	})
}

// untilServed calls serve again and again while it fails, until ctx ends.
func untilServed(ctx context.Context, failed string, serve func() error) {
	for ctx.Err() == nil {
		err := serve()
		if ctx.Err() != nil || err == nil {
			return
		}
		slog.Error(failed, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryListen):
		}
	}
}
