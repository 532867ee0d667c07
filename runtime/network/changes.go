package network

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Changes calls changed when links, addresses or routes of the machine change that its
// ways to others depend on, until ctx ends or the kernel cannot tell any more, which is
// an error: something may have been missed then. Pods' links and the Mesh's own routes
// come and go without a call.
func Changes(ctx context.Context, netNS string, changed func()) error {
	links, addrs, routes := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate), make(chan netlink.RouteUpdate)
	done := make(chan struct{})
	defer close(done)
	err := inNetNS(netNS, func() error {
		ignore := func(error) {} // the channel is closed as well
		return errors.Join(
			netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: ignore}),
			netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: ignore}),
			netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: ignore}))
	})
	if err != nil {
		return fmt.Errorf("follow the machine's network: %w", err)
	}
	defer func() { // who sends must not wait for ever
		go drain(links)
		go drain(addrs)
		go drain(routes)
	}()
	pods := map[int]bool{}
	for {
		ok, matters := true, false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, more := <-links:
			if ok = more; ok {
				pod := strings.HasPrefix(u.Attrs().Name, PodLinks)
				matters = !pod && u.Attrs().Name != "lo"
				if pods[int(u.Index)] = pod; !pod || u.Header.Type == unix.RTM_DELLINK {
					delete(pods, int(u.Index))
				}
			}
		case u, more := <-addrs:
			ok = more
			matters = ok && u.Scope == int(netlink.SCOPE_UNIVERSE)
		case u, more := <-routes:
			ok = more
			matters = ok && u.Table == unix.RT_TABLE_MAIN && !pods[u.LinkIndex] && (u.Protocol != routeProtocol || u.Type == unix.RTM_DELROUTE)
		}
		if !ok {
			return errors.New("follow the machine's network: the kernel had more to tell than was read")
		}
		if matters {
			changed()
		}
	}
}

func drain[T any](ch <-chan T) {
	for range ch {
	}
}
