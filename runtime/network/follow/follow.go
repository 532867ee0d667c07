// Package follow keeps a node's network equal to what the API says: the routes to
// the other nodes' pods, the services and their names. In: Nodes, Services and EndpointSlices
// by watch. Changes that come together are applied together.
package follow

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/dns"
)

// settle is how long changes are collected before they are applied: a commit to
// nftables costs milliseconds whatever its size.
const settle = 5 * time.Millisecond

// retryAfter is when a failed change is tried again.
const retryAfter = time.Second

// Node applies routes and services on a node, and tells zone their names, until ctx
// ends. netNS is the node's network namespace, empty for the caller's own.
func Node(ctx context.Context, client kubernetes.Interface, name string, proxy *network.Proxy, zone *dns.Zone, netNS string) error {
	f := informers.NewSharedInformerFactory(client, 0)
	services, slices, nodes := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices(), f.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	routed := make(chan struct{}, 1)
	for _, inf := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := inf.AddEventHandler(Signal(changed)); err != nil {
			return err
		}
	}
	if err := tell(zone, services.Informer(), slices.Informer()); err != nil {
		return err
	}
	if _, err := nodes.Informer().AddEventHandler(onPlace(routed)); err != nil {
		return err
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced, slices.Informer().HasSynced, nodes.Informer().HasSynced) {
		return ctx.Err()
	}
	go Loop(ctx, "routes", routed, func() error { return syncRoutes(nodes.Lister(), netNS) })
	Loop(ctx, "services", changed, func() error {
		svcs, err := services.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		eps, err := slices.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		return proxy.Apply(network.Desired(name, svcs, eps))
	})
	return nil
}

// tell brings services and their endpoints to the zone.
func tell(zone *dns.Zone, services, slices cache.SharedIndexInformer) error {
	if _, err := services.AddEventHandler(on(zone.SetService, zone.DeleteService)); err != nil {
		return err
	}
	_, err := slices.AddEventHandler(on(zone.SetSlice, zone.DeleteSlice))
	return err
}

// on calls set with each new state of an object, and remove with the last one.
func on[T any](set, remove func(*T)) cache.ResourceEventHandler {
	added := func(obj any) {
		if o, ok := obj.(*T); ok {
			set(o)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    added,
		UpdateFunc: func(_, obj any) { added(obj) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if o, ok := obj.(*T); ok {
				remove(o)
			}
		},
	}
}

// Routes keeps the routes to all nodes' pods in a namespace that is no node's, as
// the hub's, for as long as ctx and the factory run.
func Routes(ctx context.Context, f informers.SharedInformerFactory, netNS string) error {
	nodes := f.Core().V1().Nodes()
	routed := make(chan struct{}, 1)
	if _, err := nodes.Informer().AddEventHandler(onPlace(routed)); err != nil {
		return err
	}
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
			Loop(ctx, "routes", routed, func() error { return syncRoutes(nodes.Lister(), netNS) })
		}
	}()
	return nil
}

// Loop applies once at the start and then after every signal, until ctx ends. What fails
// is tried again; what names it in the log.
func Loop(ctx context.Context, what string, signal <-chan struct{}, apply func() error) {
	for {
		var retry <-chan time.Time
		if err := apply(); err != nil && ctx.Err() == nil {
			slog.Warn("network not up to date, will retry", "part", what, "error", err)
			retry = time.After(retryAfter)
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
			continue
		case <-signal:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		select { // what came while settling is applied with the rest
		case <-signal:
		default:
		}
	}
}

// Signal tells of every change, without waiting for whoever listens: ch has room for one.
func Signal(ch chan<- struct{}) cache.ResourceEventHandler {
	f := func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: func(any) { f() }, UpdateFunc: func(_, _ any) { f() }, DeleteFunc: func(any) { f() }}
}

// onPlace signals when a node comes, goes, or changes its addresses; not at each
// of its status reports.
func onPlace(ch chan<- struct{}) cache.ResourceEventHandler {
	all := Signal(ch)
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { all.OnAdd(obj, false) },
		UpdateFunc: func(old, obj any) {
			a, okA := old.(*corev1.Node)
			b, okB := obj.(*corev1.Node)
			if !okA || !okB || a.Spec.PodCIDR != b.Spec.PodCIDR || address(a) != address(b) {
				all.OnUpdate(old, obj)
			}
		},
		DeleteFunc: all.OnDelete,
	}
}

func address(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

func syncRoutes(nodes corelisters.NodeLister, netNS string) error {
	all, err := nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	var peers []network.Peer
	for _, n := range all {
		cidr, err := netip.ParsePrefix(n.Spec.PodCIDR)
		if err != nil {
			continue // not given yet
		}
		ip, err := netip.ParseAddr(address(n))
		if err != nil {
			continue
		}
		peers = append(peers, network.Peer{PodCIDR: cidr, NodeIP: ip})
	}
	return network.SyncRoutes(netNS, peers)
}
