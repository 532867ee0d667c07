package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/dns"
)

const (
	// clusterDomain is what the names of services end in.
	clusterDomain = "cluster.local"
	dnsPort       = 53
	// noUpstream is the value of --dns-upstream that asks nobody.
	noUpstream = "none"
	// namesRetry is the time between attempts to serve names.
	namesRetry = 5 * time.Second
)

// upstream is whom a worker asks for names outside of the cluster; from where it
// reaches registries.
func (e *env) upstream(ranges network.Ranges) (*dns.Upstream, error) {
	given := e.v.GetString("dns-upstream")
	if given == noUpstream {
		return nil, nil
	}
	var dial func(context.Context, string, string) (net.Conn, error)
	if socket := e.v.GetString("egress"); socket != "" {
		dial = network.DialThrough(socket)
	}
	if given != "" {
		servers := strings.Split(given, ",")
		for _, s := range servers {
			if _, err := netip.ParseAddrPort(s); err != nil {
				return nil, usageError("--dns-upstream %q: %w; use address:port, several with commas between, or %q", s, err, noUpstream)
			}
		}
		return dns.NewUpstream(servers, dial), nil
	}
	conf, err := miekg.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, nil // a machine without name servers has none to ask
	}
	var servers []string
	for _, s := range conf.Servers {
		if ip, err := netip.ParseAddr(s); err != nil || !slices.Contains(ranges.DNS(), ip) {
			servers = append(servers, net.JoinHostPort(s, conf.Port))
		}
	}
	return dns.NewUpstream(servers, dial), nil
}

// serveNames answers names on the node until ctx ends. What keeps it from doing so,
// as another name server on all addresses of a machine, does not keep pods from
// running; it is told and tried again.
func serveNames(ctx context.Context, s *dns.Server, ranges network.Ranges) {
	for ctx.Err() == nil {
		err := listenForNames(ctx, s, ranges)
		if ctx.Err() != nil {
			return
		}
		slog.Error("pods cannot look up names on this node, will retry", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(namesRetry):
		}
	}
}

func listenForNames(ctx context.Context, s *dns.Server, ranges network.Ranges) error {
	if err := network.EnsureDNSAddress("", ranges); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	ended := func(err error) {
		cancel() // one address without the other would be half of a name server
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for _, ip := range ranges.DNS() {
		udp, tcp, err := dns.Listen(netip.AddrPortFrom(ip, dnsPort))
		if err != nil {
			ended(fmt.Errorf("%w; is another name server listening on all addresses of this machine?", err))
			break
		}
		wg.Go(func() { ended(s.Serve(ctx, udp, tcp)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
