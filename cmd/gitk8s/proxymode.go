package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/userspace"
)

// The values of --proxy-mode.
const (
	modeNFTables  = "nftables"
	modeUserspace = "userspace"
)

// serviceProxy carries connections to services.
type serviceProxy interface {
	Apply(network.State) error
	Installed() ([]network.Installed, error)
	Close() error
}

// openServiceProxy opens that of --proxy-mode in the worker's own network namespace. What
// one of the other mode has left there is removed.
func (e *env) openServiceProxy(services []netip.Prefix) (serviceProxy, error) {
	mode := e.v.GetString("proxy-mode")
	missing := network.CheckNFTables("")
	switch {
	case mode != "" && mode != modeNFTables && mode != modeUserspace:
		return nil, usageError("--proxy-mode: %q is neither %s nor %s", mode, modeNFTables, modeUserspace)
	case mode == modeNFTables || mode == "" && missing == nil:
		if err := userspace.Remove("", services); err != nil {
			return nil, err
		}
		return network.NewProxy("", services)
	case missing == nil:
		p, err := network.NewProxy("", services)
		if err == nil {
			err = errors.Join(p.Remove(), p.Close())
		}
		if err != nil {
			return nil, err
		}
	default:
		slog.Warn("services are carried in user space, and pods that a NetworkPolicy selects do not start", "error", missing)
	}
	return userspace.New("", services)
}

// listenNode opens a port of the node at all of its addresses.
func (w *worker) listenNode(addr string) (net.Listener, error) {
	if _, ok := w.proxy.(*userspace.Proxy); ok {
		return userspace.Listen(context.Background(), addr)
	}
	return net.Listen("tcp", addr)
}
