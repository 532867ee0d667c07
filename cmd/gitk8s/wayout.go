package main

import (
	"context"
	"net"
	"slices"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/usernet"
)

// openWayOut lets the pods of `up` reach what the machine reaches, unless it is told not
// to. Without it the cluster works; so what is missing for it is said, and is no error.
func (n *ownNodes) openWayOut() {
	if !n.cfg.PodEgress {
		return
	}
	out, err := usernet.Open(usernet.Config{
		NetNS: network.HubNetNS(n.id), Dial: (&net.Dialer{}).DialContext,
		Refuse: slices.Concat(n.ranges.Nodes, n.ranges.Pods, n.ranges.Services),
	})
	if err != nil {
		n.e.say("pods reach nothing outside of the cluster: %v", err)
		return
	}
	n.wayOut = true
	context.AfterFunc(n.ctx, func() { _ = out.Close() })
}
