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
func (c *controlPlane) openWayOut(ctx context.Context, e *env) {
	if !c.cfg.PodEgress {
		return
	}
	out, err := usernet.Open(usernet.Config{
		NetNS: network.HubNetNS(c.hub), Dial: (&net.Dialer{}).DialContext,
		Refuse: slices.Concat(c.ranges.Nodes, c.ranges.Pods, c.ranges.Services),
	})
	if err != nil {
		e.say("pods reach nothing outside of the cluster: %v", err)
		return
	}
	c.wayOut = true
	context.AfterFunc(ctx, func() { _ = out.Close() })
}
