package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// A pod runs where its volumes are, or can be. Claims whose class waits for their
// first consumer are bound when their pod is placed: to a volume that can be used
// on the pod's node, or by telling the provisioner which node that is ("Storage
// Classes", "Volume Binding Mode").

// bindVolumesLimit bounds how long a pod keeps its place while its volumes are made.
const bindVolumesLimit = time.Minute

// storage is the claims, volumes and classes as seen by watch.
type storage struct {
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
	synced  []cache.InformerSynced

	// binding counts the pods that wait for their volumes.
	binding sync.WaitGroup
	mu      sync.Mutex
	changed chan struct{}
}

// newStorage follows what can make a pod fit, and calls wake when it changes.
func newStorage(f informers.SharedInformerFactory, wake func()) *storage {
	claims, volumes, classes := f.Core().V1().PersistentVolumeClaims(), f.Core().V1().PersistentVolumes(), f.Storage().V1().StorageClasses()
	s := &storage{
		claims: claims.Lister(), volumes: volumes.Lister(), classes: classes.Lister(), changed: make(chan struct{}),
		synced: []cache.InformerSynced{claims.Informer().HasSynced, volumes.Informer().HasSynced, classes.Informer().HasSynced},
	}
	tell := func() {
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		wake()
	}
	claims.Informer().AddEventHandler(controller.Handler(func(_, _ *corev1.PersistentVolumeClaim) { tell() }))
	volumes.Informer().AddEventHandler(controller.Handler(func(_, _ *corev1.PersistentVolume) { tell() }))
	classes.Informer().AddEventHandler(controller.Handler(func(_, _ *storagev1.StorageClass) { tell() }))
	return s
}

// next returns a channel that the next change closes.
func (s *storage) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// podVolumes is what a pod's claims ask of its node.
type podVolumes struct {
	// bound are the volumes of the claims that have one.
	bound []*corev1.PersistentVolume
	// unbound are the claims that are bound when the pod is placed, the smallest
	// first, with their classes.
	unbound []unboundClaim
	// all are the volumes that these may be bound to.
	all []*corev1.PersistentVolume
}

type unboundClaim struct {
	*corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
}

// volumePlan is how a pod's unbound claims are bound on a node.
type volumePlan struct {
	node *corev1.Node
	// match are claims with the volume that each gets.
	match []volumeMatch
	// provision are claims for which a volume is made.
	provision []*corev1.PersistentVolumeClaim
}

type volumeMatch struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

func (p *volumePlan) empty() bool { return p == nil || len(p.match)+len(p.provision) == 0 }

// volumesOf finds out what a pod's claims ask for. The error is a *FitError: what is
// wrong with a claim keeps the pod from every node.
func (s *storage) volumesOf(p *corev1.Pod, nodes []*Node) (*podVolumes, error) {
	unfit := func(format string, args ...any) (*podVolumes, error) {
		return nil, &FitError{Nodes: len(nodes), Pod: fmt.Sprintf(format, args...)}
	}
	out := &podVolumes{}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		name, own := "", v.Ephemeral != nil
		switch {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case own:
			name = ephemeral.VolumeClaimName(p, v)
		default:
			continue
		}
		claim, err := s.claims.PersistentVolumeClaims(p.Namespace).Get(name)
		if err != nil && own {
			return unfit("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		}
		if err != nil {
			return unfit("persistentvolumeclaim %q not found", name)
		}
		if own {
			if err := ephemeral.VolumeIsForPod(p, claim); err != nil {
				return unfit("%v", err)
			}
		}
		if why := out.add(claim, s); why != "" {
			return unfit("%s", why)
		}
		if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) && inUse(claim, p, nodes) {
			return unfit("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
		}
	}
	if len(out.bound)+len(out.unbound) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(out.unbound, func(a, b unboundClaim) int {
		size, other := a.Spec.Resources.Requests[corev1.ResourceStorage], b.Spec.Resources.Requests[corev1.ResourceStorage]
		return cmp.Or(size.Cmp(other), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}

// add takes a claim in, and returns why a pod with it fits nowhere, if so.
func (v *podVolumes) add(claim *corev1.PersistentVolumeClaim, s *storage) string {
	if claim.DeletionTimestamp != nil {
		return fmt.Sprintf("persistentvolumeclaim %q is being deleted", claim.Name)
	}
	if claim.Status.Phase == corev1.ClaimLost {
		return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", claim.Name, claim.Spec.VolumeName)
	}
	if isBound(claim) {
		pv, err := s.volumes.Get(claim.Spec.VolumeName)
		if err != nil {
			return fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", claim.Name, claim.Spec.VolumeName)
		}
		v.bound = append(v.bound, pv)
		return ""
	}
	class, err := s.classes.Get(volume.GetPersistentVolumeClaimClass(claim))
	if err != nil || ptr.Deref(class.VolumeBindingMode, "") != storagev1.VolumeBindingWaitForFirstConsumer || claim.Spec.VolumeName != "" {
		return "pod has unbound immediate PersistentVolumeClaims"
	}
	v.unbound = append(v.unbound, unboundClaim{claim, class})
	if v.all == nil {
		if v.all, err = s.volumes.List(labels.Everything()); err != nil {
			return err.Error()
		}
	}
	return ""
}

func isBound(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted)
}

// inUse says whether another pod has a claim.
func inUse(claim *corev1.PersistentVolumeClaim, p *corev1.Pod, nodes []*Node) bool {
	return slices.ContainsFunc(nodes, func(n *Node) bool {
		for _, other := range n.Pods {
			if other.UID != p.UID && other.Namespace == claim.Namespace && slices.ContainsFunc(other.Spec.Volumes, func(v corev1.Volume) bool {
				return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name
			}) {
				return true
			}
		}
		return false
	})
}

// volumeBinding is the plugin that refuses nodes on which a pod's claims can't be
// bound. What the claims are has been found out before the decision.
var volumeBinding = Plugin{
	Name: "VolumeBinding",
	Filter: func(_ *Cluster, p *Pod) Check {
		if p.volumes == nil {
			return nil
		}
		return func(n *Node) []Rejection {
			if _, why := p.volumes.on(n.Node); why != "" {
				return finally(why)
			}
			return nil
		}
	},
	Wakes: func(_ *Cluster, p *Pod, e *Event) bool {
		return e.is(storageChanged|nodeAdded|nodeLabels) || e.is(podGone) && e.Namespace == p.Namespace
	},
}

// on says how a pod's claims are bound if it is placed on a node, or why they can't
// be.
func (v *podVolumes) on(n *corev1.Node) (*volumePlan, string) {
	if v == nil {
		return nil, ""
	}
	for _, pv := range v.bound {
		if volume.CheckNodeAffinity(pv, n.Labels) != nil {
			return nil, "node(s) had volume node affinity conflict"
		}
	}
	plan, taken := &volumePlan{node: n}, map[string]*corev1.PersistentVolume{}
	const none = "node(s) didn't find available persistent volumes to bind"
	for _, c := range v.unbound {
		if node, ok := c.Annotations[volume.AnnSelectedNode]; ok {
			if node != n.Name {
				return nil, none // its volume is being made elsewhere
			}
			plan.provision = append(plan.provision, c.PersistentVolumeClaim)
			continue
		}
		pv, err := volume.FindMatchingVolume(c.PersistentVolumeClaim, v.all, n, taken, true, true)
		switch {
		case err == nil && pv != nil:
			taken[pv.Name] = pv
			plan.match = append(plan.match, volumeMatch{c.PersistentVolumeClaim, pv})
		case c.class.Provisioner == volume.NotSupportedProvisioner || !allowed(c.class.AllowedTopologies, n):
			return nil, none
		default:
			plan.provision = append(plan.provision, c.PersistentVolumeClaim)
		}
	}
	return plan, ""
}

// allowed says whether a class makes volumes for a node: any of the terms must
// match, and of a term everything.
func allowed(terms []corev1.TopologySelectorTerm, n *corev1.Node) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(t corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			value, ok := n.Labels[r.Key]
			return !ok || !slices.Contains(r.Values, value)
		})
	})
}

// decide places a pod and says how its claims are bound there. The caller holds mu.
func (s *Scheduler) decide(p *Pod) (res Result, plan *volumePlan, err error) {
	nodes := s.cluster.Nodes()
	if p.volumes, err = s.storage.volumesOf(p.Pod, nodes); err != nil {
		return res, nil, err
	}
	defer func() { p.volumes = nil }()
	if res, err = Schedule(s.cluster, p, s.from); err != nil || p.volumes == nil {
		s.from = res.Next
		return res, nil, err
	}
	s.from = res.Next
	for _, n := range nodes {
		if n.Name == res.Node {
			plan, _ = p.volumes.on(n.Node)
		}
	}
	return res, plan, nil
}

// bindWithVolumes binds a pod once its volumes are bound.
func (s *Scheduler) bindWithVolumes(ctx context.Context, e *entry, pod *Pod, plan *volumePlan) {
	err := s.bindVolumes(ctx, plan)
	if err == nil {
		s.bind(ctx, e, pod, plan.node.Name)
		return
	}
	// A conflict: another has been faster, and the next look will show it.
	if ctx.Err() == nil && !apierrors.IsConflict(err) {
		s.report(ctx, pod.Pod, fmt.Errorf("running PreBind plugin %q: binding volumes: %w", "VolumeBinding", err), "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(pod)
	s.queue.retry(e, time.Now())
	s.signal()
}

// bindVolumes does what a plan says and waits until all claims of a pod are bound.
// The writes are refused if somebody else has written since the plan was made.
func (s *Scheduler) bindVolumes(ctx context.Context, plan *volumePlan) error {
	ctx, cancel := context.WithTimeout(ctx, bindVolumesLimit)
	defer cancel()
	for _, m := range plan.match {
		pv, changed, err := volume.GetBindVolumeToClaim(m.volume, m.claim)
		if err != nil {
			return err
		}
		if !changed {
			continue
		}
		if _, err := s.client.CoreV1().PersistentVolumes().Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	for _, claim := range plan.provision {
		if volume.IsDelayBindingProvisioning(claim) {
			continue
		}
		claim = claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, volume.AnnSelectedNode, plan.node.Name)
		if _, err := s.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	wait := volumeWait{s.storage, plan}
	for {
		changed := s.storage.next()
		if done, err := wait.over(); done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("timed out waiting for the volumes: %w", ctx.Err())
		}
	}
}

// volumeWait looks whether a plan has come true.
type volumeWait struct {
	storage *storage
	plan    *volumePlan
}

func (w *volumeWait) over() (bool, error) {
	done := true
	check := func(claim *corev1.PersistentVolumeClaim, provision bool) error {
		now, err := w.storage.claims.PersistentVolumeClaims(claim.Namespace).Get(claim.Name)
		if err != nil {
			return err
		}
		if isBound(now) {
			pv, err := w.storage.volumes.Get(now.Spec.VolumeName)
			if err != nil {
				done = false // the volume is older than the binding: it is about to be seen
				return nil
			}
			if volume.CheckNodeAffinity(pv, w.plan.node.Labels) != nil {
				return fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, w.plan.node.Name)
			}
			return nil
		}
		done = false
		// A claim that is not as it was planned with has been told its node, and if
		// that is gone again, the provisioner could not do it.
		if provision && now.ResourceVersion != claim.ResourceVersion && now.Annotations[volume.AnnSelectedNode] != w.plan.node.Name {
			return fmt.Errorf("provisioning failed for PVC %q", now.Name)
		}
		return nil
	}
	for _, m := range w.plan.match {
		if err := check(m.claim, false); err != nil {
			return false, err
		}
	}
	for _, claim := range w.plan.provision {
		if err := check(claim, true); err != nil {
			return false, err
		}
	}
	return done, nil
}
