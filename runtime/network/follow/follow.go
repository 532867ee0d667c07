// Package follow keeps a node's network equal to what the API says: the routes to
// the other nodes' pods, the services and their names. In: Nodes, Services and EndpointSlices
// by watch. Changes that come together are applied together.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/dns"
	"gitk8s.dev/gitk8s/runtime/network/healthcheck"
)

// settle is how long changes are collected before they are applied: a commit to
// nftables costs milliseconds whatever its size.
const settle = 5 * time.Millisecond

// retryAfter is when a failed change is tried again.
const retryAfter = time.Second

// Proxy leads the addresses of services to their endpoints.
type Proxy interface {
	// Apply makes it do what a state says.
	Apply(network.State) error
}

// Config of a node's part.
type Config struct {
	// Informers are started by Node, and may be shared.
	Informers informers.SharedInformerFactory
	// Pods, of this node, have host ports; the caller starts it.
	Pods cache.SharedIndexInformer
	// Ranges are the cluster's.
	Ranges network.Ranges
	// Node is its name, IPs its addresses, NetNS the path of its network namespace, empty
	// for the caller's own.
	Node  string
	IPs   []netip.Addr
	NetNS string
	// Proxy, Zone and Checks are kept up to date. A Proxy in user space carries no SCTP.
	Proxy     Proxy
	UserSpace bool
	Zone      *dns.Zone
	Checks    *healthcheck.Server
	Events    record.EventRecorder
	// Mesh, optional, keeps the ways to the other nodes' pods, which Links follow. Without
	// it CNI plugins have those, and the pods' host ports.
	Mesh  *network.Mesh
	Links PodLinks
	// Drain is told which pods the services lead to.
	Drain *Drain
}

// Node applies routes, services and load balancers' addresses on a node, and tells
// the zone their names, until ctx ends.
func Node(ctx context.Context, cfg Config) error {
	f := cfg.Informers
	services, slices, nodes := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices(), f.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	routed := make(chan struct{}, 1)
	for _, inf := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := inf.AddEventHandler(Signal(changed)); err != nil {
			return err
		}
	}
	if _, err := cfg.Pods.AddEventHandler(onHostPorts(changed)); err != nil {
		return err
	}
	if err := tell(cfg.Zone, services.Informer(), slices.Informer()); err != nil {
		return err
	}
	if _, err := nodes.Informer().AddEventHandler(onPlace(routed)); err != nil {
		return err
	}
	if _, err := slices.Informer().AddEventHandler(onServers(routed)); err != nil {
		return err
	}
	if _, err := nodes.Informer().AddEventHandler(onZone(cfg.Node, changed)); err != nil {
		return err
	}
	if err := tellUnsupported(services.Informer(), cfg.UserSpace, cfg.Events); err != nil {
		return err
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced, slices.Informer().HasSynced, nodes.Informer().HasSynced, cfg.Pods.HasSynced) {
		return ctx.Err()
	}
	defer cfg.Checks.Close()
	if cfg.Mesh != nil {
		w := &ways{mesh: cfg.Mesh, nodes: nodes.Lister(), slices: slices.Lister(), links: cfg.Links, events: cfg.Events, node: cfg.Node}
		go changes(ctx, cfg.Mesh, routed)
		go Loop(ctx, "routes", routed, w.sync)
	}
	Loop(ctx, "services", changed, func() error {
		svcs, eps, err := listed(services.Lister(), slices.Lister())
		if err != nil {
			return err
		}
		at := network.Place{Node: cfg.Node, Names: cfg.Ranges.DNS()}
		if n, err := nodes.Lister().Get(cfg.Node); err == nil {
			at.Zone = n.Labels[corev1.LabelTopologyZone]
		}
		var pods []*corev1.Pod
		for _, obj := range cfg.Pods.GetStore().List() {
			if p, ok := obj.(*corev1.Pod); ok && hasHostPorts(p) && cfg.Mesh != nil {
				pods = append(pods, p)
			}
		}
		err = cfg.Proxy.Apply(network.Desired(at, svcs, eps).WithHostPorts(pods))
		if err == nil {
			cfg.Drain.applied(cfg.Node, eps)
		}
		return errors.Join(err,
			network.SyncAddresses(cfg.NetNS, cfg.IPs, network.Announced(cfg.Node, svcs)),
			cfg.Checks.Apply(healthcheck.Desired(cfg.Node, svcs, eps)))
	})
	return nil
}

// tellUnsupported says of services with SCTP, once each, where there is none.
func tellUnsupported(services cache.SharedIndexInformer, inUserSpace bool, events record.EventRecorder) error {
	why := ""
	switch {
	case !network.HasSCTP():
		why = "the node's kernel has no SCTP: pods on it can neither serve nor use this service's SCTP ports"
	case inUserSpace:
		why = "the node carries services in user space, and SCTP not at all: pods on it cannot use this service's SCTP ports"
	default:
		return nil
	}
	usesSCTP := func(svc *corev1.Service) bool {
		for _, p := range svc.Spec.Ports {
			if p.Protocol == corev1.ProtocolSCTP {
				return true
			}
		}
		return false
	}
	_, err := services.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
		if svc, ok := obj.(*corev1.Service); ok && usesSCTP(svc) {
			events.Event(svc, corev1.EventTypeWarning, "SCTPNotSupported", why)
		}
	}})
	return err
}

// Machine tells apply, at the start and after changes, what services there are and
// where they can be reached, for as long as ctx and the factory run.
func Machine(ctx context.Context, f informers.SharedInformerFactory, apply func([]*corev1.Service, []*discoveryv1.EndpointSlice, []*corev1.Node) error) error {
	services, slices, nodes := f.Core().V1().Services(), f.Discovery().V1().EndpointSlices(), f.Core().V1().Nodes()
	changed := make(chan struct{}, 1)
	for _, inf := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := inf.AddEventHandler(Signal(changed)); err != nil {
			return err
		}
	}
	if _, err := nodes.Informer().AddEventHandler(onReady(changed)); err != nil {
		return err
	}
	go func() {
		if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced, slices.Informer().HasSynced, nodes.Informer().HasSynced) {
			return
		}
		Loop(ctx, "ports of the machine", changed, func() error {
			svcs, eps, err := listed(services.Lister(), slices.Lister())
			if err != nil {
				return err
			}
			all, err := nodes.Lister().List(labels.Everything())
			if err != nil {
				return err
			}
			return apply(svcs, eps, all)
		})
	}()
	return nil
}

// listed are all services, and all of their endpoints.
func listed(services corelisters.ServiceLister, slices discoverylisters.EndpointSliceLister) ([]*corev1.Service, []*discoveryv1.EndpointSlice, error) {
	svcs, err := services.List(labels.Everything())
	if err != nil {
		return nil, nil, err
	}
	eps, err := slices.List(labels.Everything())
	return svcs, eps, err
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

// Loop applies once at the start and then after every signal, until ctx ends. What fails
// is tried again, and told once while it goes on; what names it in the log.
func Loop(ctx context.Context, what string, signal <-chan struct{}, apply func() error) {
	said := ""
	for {
		var retry <-chan time.Time
		if err := apply(); err == nil {
			said = ""
		} else if ctx.Err() == nil {
			if err.Error() != said {
				slog.Warn("network not up to date, will retry", "part", what, "error", err)
			}
			said, retry = err.Error(), time.After(retryAfter)
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

// onReady signals when a node becomes reachable, or ceases to be.
func onReady(ch chan<- struct{}) cache.ResourceEventHandler {
	return onNode(ch, func(n *corev1.Node) string {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return fmt.Sprint(c.Status, addresses(n))
			}
		}
		return fmt.Sprint(addresses(n))
	})
}

// hasHostPorts says whether a pod wants ports of its node.
func hasHostPorts(p *corev1.Pod) bool {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.HostPort > 0 }) {
			return !p.Spec.HostNetwork
		}
	}
	return false
}

// onHostPorts signals when a pod with host ports comes, goes, or gets its address.
func onHostPorts(ch chan<- struct{}) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			p, ok := obj.(*corev1.Pod)
			return ok && hasHostPorts(p)
		},
		Handler: Signal(ch),
	}
}

// onZone signals when a node moves to another zone.
func onZone(name string, ch chan<- struct{}) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			n, ok := obj.(*corev1.Node)
			return ok && n.Name == name
		},
		Handler: onNode(ch, func(n *corev1.Node) string { return n.Labels[corev1.LabelTopologyZone] }),
	}
}

// onNode signals when a node comes, goes, or changes what aspect says of it.
func onNode(ch chan<- struct{}, aspect func(*corev1.Node) string) cache.ResourceEventHandler {
	all := Signal(ch)
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { all.OnAdd(obj, false) },
		UpdateFunc: func(old, obj any) {
			a, okA := old.(*corev1.Node)
			b, okB := obj.(*corev1.Node)
			if !okA || !okB || aspect(a) != aspect(b) {
				all.OnUpdate(old, obj)
			}
		},
		DeleteFunc: all.OnDelete,
	}
}

// addresses are the internal ones that a node says it has.
func addresses(n *corev1.Node) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, ip)
		}
	}
	return out
}

// ofNode is a node as a peer, once for each family; none until it has been given addresses
// for its pods.
func ofNode(n *corev1.Node) (out []network.Peer) {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		if ip := network.Same(cidr.Addr(), addresses(n)); ip.IsValid() {
			out = append(out, network.Peer{Name: n.Name, PodCIDR: cidr, NodeIP: ip})
		}
	}
	return out
}
