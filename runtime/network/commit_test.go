package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestConnectDuringCommit: a connection that begins while the number of a service's
// endpoints changes gets to one of them. The kernel may look at it by rules from before
// the change and at sets from after it; what is then not translated would wait for ever.
func TestConnectDuringCommit(t *testing.T) {
	c := newCluster(t)
	var endpoints []netip.AddrPort
	for i := range 11 {
		_, ip := c.pod(1, fmt.Sprint("pod-", i))
		endpoints = append(endpoints, netip.AddrPortFrom(ip, 8080))
	}
	p, err := NewProxy(c.nodes[0].NetNS, rangesIPv4.Services)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	service := netip.MustParseAddrPort("10.43.7.7:80")
	apply := func(n int) {
		t.Helper()
		if err := p.Apply(State{Services: []Service{{IP: service.Addr(), Port: service.Port(), Proto: TCP, Endpoints: endpoints[:n]}}}); err != nil {
			t.Fatal(err)
		}
	}
	apply(10)
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Second)
	defer stop()
	var wg sync.WaitGroup
	var made, lost atomic.Int64
	for range 12 {
		wg.Go(func() {
			err := inNetNS(c.nodes[0].NetNS, func() error {
				for ctx.Err() == nil {
					conn, err := net.DialTimeout("tcp", service.String(), 10*time.Second)
					if err != nil {
						lost.Add(1)
						return err
					}
					made.Add(1)
					_ = conn.(*net.TCPConn).SetLinger(0) // its port is free again
					_ = conn.Close()
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	changes := 0
	for ; ctx.Err() == nil && lost.Load() == 0; changes++ {
		apply(10 + (changes+1)%2)
	}
	stop()
	wg.Wait()
	t.Logf("%d connections during %d changes", made.Load(), changes)
}
