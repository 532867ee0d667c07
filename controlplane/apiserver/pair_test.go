package apiserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// TestPairSurvivesReuse: a kept-alive connection serves thousands of requests, each
// of which the server interrupts its read for. Connections in memory lost that race
// and then cancelled every later request at once.
func TestPairSurvivesReuse(t *testing.T) {
	l := newPairListener()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Err() != nil {
			http.Error(w, "cancelled", http.StatusGatewayTimeout)
			return
		}
		_, _ = io.WriteString(w, "ok")
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	client := &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 4,
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) },
	}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5000 {
				resp, err := client.Get("http://in-process/")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("status %d", resp.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
}
