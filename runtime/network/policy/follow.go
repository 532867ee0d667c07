package policy

import (
	"context"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/runtime/network/follow"
)

// kernel is an Enforcer.
type kernel interface {
	Apply(Rules) error
	Hold(ips []netip.Addr) error
}

// Follower keeps what a node enforces equal to what the API says, and to which pods the
// node has. The pods and namespaces of the cluster are followed only while there is a
// policy.
type Follower struct {
	client  kubernetes.Interface
	node    string
	kernel  kernel
	changed chan struct{}

	mu       sync.Mutex
	here     started
	policies networkinglisters.NetworkPolicyLister // nil until they are known
	peers    *peers                                // nil while there is no policy
}

// NewFollower returns one for the node of an Enforcer.
func NewFollower(client kubernetes.Interface, node string, e *Enforcer) *Follower {
	return newFollower(client, node, e)
}

func newFollower(client kubernetes.Interface, node string, k kernel) *Follower {
	return &Follower{client: client, node: node, kernel: k, changed: make(chan struct{}, 1), here: started{}}
}

// Run follows until ctx ends. What is enforced then stays.
func (f *Follower) Run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(f.client, 0)
	policies := factory.Networking().V1().NetworkPolicies()
	if _, err := policies.Informer().AddEventHandler(follow.Signal(f.changed)); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), policies.Informer().HasSynced) {
		return ctx.Err()
	}
	f.mu.Lock()
	f.policies = policies.Lister()
	f.mu.Unlock()
	follow.Loop(ctx, "policies", f.changed, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, err := f.apply()
		return err
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetPeers()
	return nil
}

// Starts takes note of a pod whose network has been made. When it returns, the policies
// hold for the pod; while they are not known nothing comes to it or from it. It may be
// repeated.
func (f *Follower) Starts(pod *corev1.Pod, ips []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.here.add(pod, ips)
	if known, err := f.apply(); known || err != nil {
		return err
	}
	return f.kernel.Hold(ips)
}

// Runs takes note of a pod that an earlier process has started: what that one enforced
// holds until the policies are known.
func (f *Follower) Runs(pod *corev1.Pod, ips []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.here.add(pod, ips)
	f.signal()
}

// Ends forgets a pod, as nothing of it runs any more.
func (f *Follower) Ends(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.here[uid]; ok {
		delete(f.here, uid)
		f.signal()
	}
}

func (f *Follower) signal() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// apply enforces what the API says, if all of it is known.
func (f *Follower) apply() (known bool, err error) {
	if f.policies == nil {
		return false, nil
	}
	policies, err := f.policies.List(labels.Everything())
	if err != nil {
		return false, err
	}
	if len(policies) == 0 {
		f.forgetPeers()
		return true, f.kernel.Apply(Rules{})
	}
	if f.peers == nil {
		if f.peers, err = f.followPeers(); err != nil {
			return false, err
		}
	}
	if !f.peers.synced() {
		return false, nil // that they are is a change
	}
	return true, f.enforce(policies)
}

func (f *Follower) enforce(policies []*networkingv1.NetworkPolicy) error {
	pods, err := f.peers.pods.List(labels.Everything())
	if err != nil {
		return err
	}
	namespaces, err := f.peers.namespaces.List(labels.Everything())
	if err != nil {
		return err
	}
	return f.kernel.Apply(Compile(snapshot(f.node, f.here, policies, pods, namespaces)))
}

// peers are the pods and namespaces of the cluster, reduced to what policies look at.
type peers struct {
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	synced     func() bool
	stop       func()
}

func (f *Follower) followPeers() (*peers, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(f.client, 0, informers.WithTransform(Reduce))
	pods, namespaces := factory.Core().V1().Pods(), factory.Core().V1().Namespaces()
	for _, inf := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer()} {
		if _, err := inf.AddEventHandler(f.onDifference()); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	synced := func() bool { return pods.Informer().HasSynced() && namespaces.Informer().HasSynced() }
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), synced) {
			f.signal()
		}
	}()
	return &peers{pods.Lister(), namespaces.Lister(), synced, func() { cancel(); factory.Shutdown() }}, nil
}

func (f *Follower) forgetPeers() {
	if f.peers != nil {
		f.peers.stop()
		f.peers = nil
	}
}

// onDifference signals what comes, goes, or is not the same any more: most of what a pod
// reports is of no concern to policies.
func (f *Follower) onDifference() cache.ResourceEventHandler {
	all := follow.Signal(f.changed)
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { all.OnAdd(obj, false) },
		DeleteFunc: all.OnDelete,
		UpdateFunc: func(old, obj any) {
			if !equality.Semantic.DeepEqual(withoutVersion(old), withoutVersion(obj)) {
				all.OnUpdate(old, obj)
			}
		},
	}
}

func withoutVersion(obj any) any {
	switch o := obj.(type) {
	case *corev1.Pod:
		c := *o
		c.ResourceVersion = ""
		return &c
	case *corev1.Namespace:
		c := *o
		c.ResourceVersion = ""
		return &c
	}
	return obj
}

// Reduce, a transform of an informer, keeps of pods and namespaces what the network looks
// at: names, labels, addresses and ports.
func Reduce(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return &corev1.Pod{
			ObjectMeta: reducedMeta(&o.ObjectMeta),
			Spec: corev1.PodSpec{
				NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork,
				Containers: withPorts(o.Spec.Containers), InitContainers: withPorts(o.Spec.InitContainers),
			},
			Status: corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs},
		}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: reducedMeta(&o.ObjectMeta)}, nil
	}
	return obj, nil
}

func reducedMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{UID: m.UID, Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion, Labels: m.Labels}
}

func withPorts(list []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range list {
		if len(list[i].Ports) > 0 {
			out = append(out, corev1.Container{Ports: list[i].Ports, RestartPolicy: list[i].RestartPolicy})
		}
	}
	return out
}
