package garbagecollector

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// identity is where an object is, and which one it is there.
type identity struct {
	gk        schema.GroupKind
	namespace string
	name      string
	uid       types.UID
}

// node is an object in the graph.
type node struct {
	identity
	owners     []metav1.OwnerReference
	dependents map[types.UID]*node
	// virtual: named by a dependent and not seen yet.
	virtual bool
	// deleting: it has a deletion timestamp. foreground and orphan: it waits with
	// the finalizer of that name.
	deleting, foreground, orphan bool
}

// graph is the owners and dependents known, by UID. It is not safe for concurrent
// use; the controller holds a lock around it.
type graph struct {
	nodes map[types.UID]*node
	// namespaced tells whether a kind's objects are in namespaces.
	namespaced func(gk schema.GroupKind) bool
}

func newGraph(namespaced func(schema.GroupKind) bool) *graph {
	return &graph{nodes: map[types.UID]*node{}, namespaced: namespaced}
}

// work is what a change makes necessary.
type work struct {
	// check are nodes that may have to be deleted or released.
	check []types.UID
	// orphan are nodes whose dependents are to be left behind.
	orphan []types.UID
}

func (w *work) add(ids ...types.UID) { w.check = append(w.check, ids...) }

func (n *node) dependentIDs() []types.UID {
	out := make([]types.UID, 0, len(n.dependents))
	for id := range n.dependents {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// observe takes in an object as it was seen.
func (g *graph) observe(gk schema.GroupKind, obj metav1.Object) work {
	var w work
	n, known := g.nodes[obj.GetUID()]
	if !known {
		n = &node{dependents: map[types.UID]*node{}}
		g.nodes[obj.GetUID()] = n
	}
	first := !known || n.virtual
	seen := identity{gk: gk, namespace: obj.GetNamespace(), name: obj.GetName(), uid: obj.GetUID()}
	if n.virtual && n.identity != seen {
		// Somebody named this UID at a place where it is not.
		w.add(n.dependentIDs()...)
	}
	n.identity, n.virtual = seen, false
	if first || !slices.EqualFunc(n.owners, obj.GetOwnerReferences(), sameReference) {
		g.reown(n, obj.GetOwnerReferences(), &w)
		w.add(n.uid)
	}
	wasForeground, wasOrphan := n.foreground, n.orphan
	n.deleting = obj.GetDeletionTimestamp() != nil
	n.foreground = n.deleting && slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents)
	n.orphan = n.deleting && slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents)
	if n.foreground && !wasForeground {
		w.add(n.dependentIDs()...)
		w.add(n.uid)
	}
	if n.orphan && !wasOrphan {
		w.orphan = append(w.orphan, n.uid)
	}
	return w
}

func sameReference(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion && blocks(a) == blocks(b)
}

func blocks(r metav1.OwnerReference) bool {
	return r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
}

// reown moves a node to new owners, making virtual ones where needed.
func (g *graph) reown(n *node, owners []metav1.OwnerReference, w *work) {
	for _, r := range n.owners {
		if owner, ok := g.nodes[r.UID]; ok {
			delete(owner.dependents, n.uid)
			if owner.foreground {
				w.add(owner.uid)
			}
		}
	}
	n.owners = slices.Clone(owners)
	for _, r := range owners {
		owner, ok := g.nodes[r.UID]
		if !ok {
			owner = &node{identity: g.ownerIdentity(n, r), virtual: true, dependents: map[types.UID]*node{}}
			g.nodes[r.UID] = owner
			w.add(r.UID)
		}
		owner.dependents[n.uid] = n
		if owner.foreground {
			w.add(owner.uid, n.uid)
		}
	}
}

// ownerIdentity is where an owner must be: in its dependent's namespace, or in
// none.
func (g *graph) ownerIdentity(n *node, r metav1.OwnerReference) identity {
	gk := schema.FromAPIVersionAndKind(r.APIVersion, r.Kind).GroupKind()
	id := identity{gk: gk, name: r.Name, uid: r.UID}
	if g.namespaced(gk) {
		id.namespace = n.namespace
	}
	return id
}

// forget takes in that an object is gone.
func (g *graph) forget(uid types.UID) work {
	var w work
	n, ok := g.nodes[uid]
	if !ok {
		return w
	}
	g.reown(n, nil, &w)
	w.add(n.dependentIDs()...)
	delete(g.nodes, uid)
	return w
}

// state is what a dependent's reference to an owner amounts to.
type state int

const (
	// solid: the owner is there and keeps its dependents.
	solid state = iota
	// waiting: the owner is being deleted and waits for its dependents.
	waiting
	// unseen: the owner is not in the graph; only a live look can tell.
	unseen
)

// reference classifies an owner reference of a node.
func (g *graph) reference(n *node, r metav1.OwnerReference) state {
	owner, ok := g.nodes[r.UID]
	switch {
	case !ok || owner.virtual || owner.identity != g.ownerIdentity(n, r):
		return unseen
	case owner.foreground:
		return waiting
	}
	return solid
}

// action is what to do with an object whose owners have been looked at.
type action int

const (
	keep action = iota
	// release: drop the references to owners that are gone or going.
	release
	// remove: delete the object, in the background or as its finalizers say.
	remove
	// removeForeground: delete the object after its own dependents.
	removeForeground
)

// decide is the rule of collection. owners counts the references by what they
// amount to; dependents tells whether anything depends on the object.
func decide(solidOwners, absentOwners, waitingOwners int, dependents bool) action {
	switch {
	case solidOwners+absentOwners+waitingOwners == 0:
		return keep
	case solidOwners > 0 && absentOwners+waitingOwners == 0:
		return keep
	case solidOwners > 0:
		return release
	case waitingOwners > 0 && dependents:
		return removeForeground
	}
	return remove
}

// blocking returns the dependents that hold up the deletion of a node.
func blocking(n *node) []types.UID {
	var out []types.UID
	for _, id := range n.dependentIDs() {
		for _, r := range n.dependents[id].owners {
			if r.UID == n.uid && blocks(r) {
				out = append(out, id)
				break
			}
		}
	}
	return out
}
