package ingress

import (
	"io"
	"net/http"
	"time"
)

// clientStall is how long a client may stand still in the middle of sending a body or of
// taking an answer, as reverse proxies that people know have it. However slow it is,
// it is served as long as it moves.
const clientStall = time.Minute

// patience calls give if what was begun has not ended in time.
type patience struct {
	limit time.Duration
	give  func()
	timer *time.Timer
}

func (p *patience) begin() {
	if p.timer == nil {
		p.timer = time.AfterFunc(p.limit, p.give)
	} else {
		p.timer.Reset(p.limit)
	}
}

func (p *patience) end() { p.timer.Stop() }

// patientBody is the body of a request whose client may not stand still.
type patientBody struct {
	io.ReadCloser
	patience
}

// Read implements io.Reader.
func (b *patientBody) Read(p []byte) (int, error) {
	b.begin()
	defer b.end()
	return b.ReadCloser.Read(p)
}

// watchClient ends a request whose client stands still. What it sends in a stream of
// gRPC, or after another protocol has been switched to, comes when it comes.
func (p *Proxy) watchClient(w *recorder, r *http.Request, x *exchange) {
	control := http.NewResponseController(w.ResponseWriter)
	if r.ProtoMajor == 1 {
		// A deadline that passes between two writes does no harm, and it holds for what
		// the server writes by itself: to say 100 Continue, and at the end.
		w.deadline = func() { _ = control.SetWriteDeadline(time.Now().Add(p.stall)) }
		w.deadline()
	} else {
		// Here a deadline would end the stream also where there is nothing to write.
		w.patience = &patience{limit: p.stall, give: func() { _ = control.SetWriteDeadline(time.Now()) }}
	}
	if r.Body != nil && r.Body != http.NoBody && !isGRPC(r.Header) && r.Header.Get("Upgrade") == "" {
		r.Body = &patientBody{r.Body, patience{limit: p.stall, give: func() {
			x.stalled.Store(true)
			_ = control.SetReadDeadline(time.Now())
		}}}
	}
}

// begin and end enclose everything that waits for the client to take an answer.
func (r *recorder) begin() {
	switch {
	case r.deadline != nil:
		r.deadline()
	case r.patience != nil:
		r.patience.begin()
	}
}

func (r *recorder) end() {
	if r.patience != nil {
		r.patience.end()
	}
}

// FlushError is what http.ResponseController calls.
func (r *recorder) FlushError() error {
	r.begin()
	defer r.end()
	return http.NewResponseController(r.ResponseWriter).Flush()
}
