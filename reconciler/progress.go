package reconciler

import "sync"

// Progress is one line of what happens to an Application, for `git push`, `sync`
// and logs.
type Progress struct {
	// Key of the Application, "namespace/name".
	Key string
	// Commit that it is about.
	Commit string
	// Line to show.
	Line string
	// Done is true for the last line about the commit; Succeeded says how it ended.
	Done, Succeeded bool
}

// feed hands progress to whoever listens. A listener that does not keep up loses
// lines, never the others' time, but not the last one.
type feed struct {
	mu        sync.Mutex
	listeners map[chan Progress]string
}

func newFeed() *feed { return &feed{listeners: map[chan Progress]string{}} }

// listen returns a channel with the progress of one Application until cancel is
// called.
func (f *feed) listen(key string) (lines <-chan Progress, cancel func()) {
	ch := make(chan Progress, 64)
	f.mu.Lock()
	f.listeners[ch] = key
	f.mu.Unlock()
	return ch, func() {
		f.mu.Lock()
		delete(f.listeners, ch)
		f.mu.Unlock()
	}
}

func (f *feed) send(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch, key := range f.listeners {
		if key != p.Key {
			continue
		}
		select {
		case ch <- p:
		default:
			if p.Done {
				<-ch // make room: there is one sender, so the next send succeeds
				ch <- p
			}
		}
	}
}
