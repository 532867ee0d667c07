package follow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network"
)

// AnnotationWireGuardKey on a Node is its public key for WireGuard, in base64.
const AnnotationWireGuardKey = "gitk8s.dev/wireguard-public-key"

// PodLinks are the links of a node's pods.
type PodLinks interface {
	// SetMTU gives them an MTU.
	SetMTU(mtu int) error
	// Repair makes the routes to them anew that have gone with an address of the node.
	Repair() error
}

// Mesh is a network.Mesh, or leads to one.
type Mesh interface {
	// Sync makes the ways what peers says.
	Sync(peers []network.Peer) (network.Ways, error)
	// Changes calls changed when the Mesh's machine changes in a way that matters, until
	// ctx ends or that cannot be told any more, which is an error.
	Changes(ctx context.Context, changed func()) error
}

// ways keeps a machine's ways to the others' pods.
type ways struct {
	mesh  Mesh
	nodes corelisters.NodeLister
	// slices, links and events are a node's; nil for other machines.
	slices discoverylisters.EndpointSliceLister
	links  PodLinks
	events record.EventRecorder
	node   string
	// said are the refused peers that have been told about, and why.
	said map[string]bool
}

func (w *ways) sync() error {
	nodes, err := w.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	var servers []*discoveryv1.EndpointSlice
	if w.slices != nil {
		if servers, err = w.slices.EndpointSlices(metav1.NamespaceDefault).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"})); err != nil {
			return err
		}
	}
	found, err := w.mesh.Sync(peers(nodes, servers))
	w.tell(found.Refused)
	if w.links == nil || found.MTU == 0 {
		return err
	}
	return errors.Join(err, w.links.SetMTU(found.MTU), w.links.Repair())
}

// tell says once of each peer that there is no way to it, and why.
func (w *ways) tell(refused []network.Refusal) {
	now := map[string]bool{}
	for _, r := range refused {
		said := r.Name + " " + r.Reason
		now[said] = true
		if w.said[said] {
			continue
		}
		why := fmt.Sprintf("no traffic of pods to and from node %s (%s, pods %s): %s", r.Name, r.NodeIP, r.PodCIDR, r.Message)
		slog.Warn("no way to a node", "node", r.Name, "reason", r.Reason, "message", why)
		if w.events != nil {
			w.events.Event(&corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: w.node}, corev1.EventTypeWarning, r.Reason, why)
		}
	}
	w.said = now
}

// peers are the other machines that nodes and the API's own endpoints tell of, oldest
// first; the node itself is among them.
func peers(nodes []*corev1.Node, servers []*discoveryv1.EndpointSlice) []network.Peer {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	var out []network.Peer
	for _, n := range nodes {
		key, err := network.ParsePublicKey(n.Annotations[AnnotationWireGuardKey])
		for _, p := range ofNode(n) {
			if err == nil {
				p.Key = key
			}
			out = append(out, p)
		}
	}
	for _, s := range servers {
		for _, ep := range s.Endpoints {
			for _, a := range ep.Addresses {
				if ip, err := netip.ParseAddr(a); err == nil {
					out = append(out, network.Peer{NodeIP: ip})
				}
			}
		}
	}
	return out
}

// Routes keeps the ways to all nodes' pods from a machine that is no node, for as long as
// ctx and the factory run.
func Routes(ctx context.Context, f informers.SharedInformerFactory, mesh Mesh) error {
	nodes := f.Core().V1().Nodes()
	routed := make(chan struct{}, 1)
	if _, err := nodes.Informer().AddEventHandler(onPlace(routed)); err != nil {
		return err
	}
	go changes(ctx, mesh, routed)
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
			w := &ways{mesh: mesh, nodes: nodes.Lister()}
			Loop(ctx, "routes", routed, w.sync)
		}
	}()
	return nil
}

// changes signals when the machine's own network changes.
func changes(ctx context.Context, mesh Mesh, ch chan<- struct{}) {
	signal := func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	for {
		err := mesh.Changes(ctx, signal)
		if ctx.Err() != nil {
			return
		}
		slog.Debug("followed anew", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
		}
		signal() // what was missed
	}
}

// onPlace signals when a node comes, goes, or changes its addresses or key; not at each
// of its status reports.
func onPlace(ch chan<- struct{}) cache.ResourceEventHandler {
	return onNode(ch, func(n *corev1.Node) string {
		return fmt.Sprint(n.Spec.PodCIDR, n.Spec.PodCIDRs, addresses(n), n.Annotations[AnnotationWireGuardKey])
	})
}

// onServers signals when the API gets another address.
func onServers(ch chan<- struct{}) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			s, ok := obj.(*discoveryv1.EndpointSlice)
			return ok && s.Namespace == metav1.NamespaceDefault && s.Labels[discoveryv1.LabelServiceName] == "kubernetes"
		},
		Handler: Signal(ch),
	}
}
