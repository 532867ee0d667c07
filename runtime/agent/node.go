package agent

import (
	"context"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	nodeutil "k8s.io/component-helpers/node/util"
)

const (
	// heartbeat is how often the status is written when nothing changed.
	heartbeat = 5 * time.Minute
	// statusCheck is how often the status is computed when nothing is known to have
	// changed.
	statusCheck = 30 * time.Second
	// networkRetry is the time between attempts to set up the pod network.
	networkRetry = 2 * time.Second
)

// nodeState keeps the Node object.
type nodeState struct {
	a           *Agent
	capacity    v1.ResourceList
	allocatable v1.ResourceList
	info        v1.NodeSystemInfo

	ready atomic.Bool
	// networkUp is closed when ready becomes true.
	networkUp chan struct{}
	uid       atomic.Pointer[types.UID]
	// registered is closed when the Node exists.
	registered chan struct{}
	once       sync.Once

	mu      sync.Mutex
	node    *v1.Node
	netErr  error
	changed chan struct{}
}

func newNodeState(a *Agent, capacity v1.ResourceList) *nodeState {
	return &nodeState{
		a: a, capacity: capacity, allocatable: allocatable(capacity, reserved(capacity, a.cfg.SystemReserved, a.cfg.EvictionHard)),
		info: nodeInfo(), registered: make(chan struct{}), networkUp: make(chan struct{}), changed: make(chan struct{}, 1),
	}
}

func (n *nodeState) networkReady() bool { return n.ready.Load() }

func (n *nodeState) run(ctx context.Context) {
	wait := 50 * time.Millisecond
	for {
		err := n.register(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		n.a.log.Warn("register node; trying again", "error", err)
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, 5*time.Second)
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.follow(ctx) })
	wg.Go(func() { n.keep(ctx) })
	wg.Wait()
}

// register makes the Node, or brings labels and annotations of an existing one up
// to date.
func (n *nodeState) register(ctx context.Context) error {
	api := n.a.cfg.Client.CoreV1().Nodes()
	want := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.a.cfg.NodeName, Labels: n.labels(), Annotations: n.annotations()}}
	want.Status = n.status(nil, n.a.cfg.Now())
	node, err := api.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		if node, err = api.Get(ctx, n.a.cfg.NodeName, metav1.GetOptions{}); err != nil {
			return fmt.Errorf("get node %s: %w", n.a.cfg.NodeName, err)
		}
		fresh := node.DeepCopy()
		for k, v := range n.labels() {
			metav1.SetMetaDataLabel(&fresh.ObjectMeta, k, v)
		}
		for k, v := range n.annotations() {
			metav1.SetMetaDataAnnotation(&fresh.ObjectMeta, k, v)
		}
		for k, v := range n.a.cfg.NodeAnnotations {
			if v == "" {
				delete(fresh.Annotations, k)
			}
		}
		if !equality.Semantic.DeepEqual(fresh.ObjectMeta, node.ObjectMeta) {
			if node, err = api.Update(ctx, fresh, metav1.UpdateOptions{}); err != nil {
				return fmt.Errorf("update metadata of node %s: %w", n.a.cfg.NodeName, err)
			}
		}
	} else if err != nil {
		return fmt.Errorf("create node %s: %w", n.a.cfg.NodeName, err)
	}
	n.observe(ctx, node)
	n.once.Do(func() { close(n.registered) })
	return nil
}

func (n *nodeState) labels() map[string]string {
	out := maps.Clone(n.a.cfg.NodeLabels)
	if out == nil {
		out = map[string]string{}
	}
	out[v1.LabelHostname] = n.a.cfg.NodeName
	out[v1.LabelOSStable] = runtime.GOOS
	out[v1.LabelArchStable] = runtime.GOARCH
	return out
}

func (n *nodeState) annotations() map[string]string {
	out := map[string]string{annotationRoot: n.a.localDir()}
	for k, v := range n.a.cfg.NodeAnnotations {
		if v != "" {
			out[k] = v
		}
	}
	return out
}

// labelsNow are the labels of the Node as last seen.
func (n *nodeState) labelsNow() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.node == nil {
		return n.labels()
	}
	return n.node.Labels
}

// follow watches the node's own object for its podCIDR, and makes it again when
// somebody deletes it.
func (n *nodeState) follow(ctx context.Context) {
	api := n.a.cfg.Client.CoreV1().Nodes()
	again := func() {
		if err := n.register(ctx); err != nil && ctx.Err() == nil {
			n.a.log.Warn("register node again", "error", err)
		}
	}
	follow(ctx, "node", &v1.Node{}, fields.OneTermEqualSelector("metadata.name", n.a.cfg.NodeName),
		func(ctx context.Context, o metav1.ListOptions) (apiruntime.Object, error) { return api.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) },
		sink{
			replace: func(list []any) {
				if len(list) == 0 {
					again()
				}
				for _, obj := range list {
					n.observe(ctx, obj.(*v1.Node))
				}
			},
			set:    func(obj any) { n.observe(ctx, obj.(*v1.Node)) },
			remove: func(any) { again() },
		}, nil)
}

// observe takes the object as the API has it.
func (n *nodeState) observe(ctx context.Context, node *v1.Node) {
	uid := node.UID
	n.uid.Store(&uid)
	n.mu.Lock()
	n.node = node
	n.mu.Unlock()
	if !n.ready.Load() && node.Spec.PodCIDR != "" {
		n.startNetwork(ctx, node)
	}
	n.poke()
}

func (n *nodeState) poke() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *nodeState) startNetwork(ctx context.Context, node *v1.Node) {
	cidrs := node.Spec.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{node.Spec.PodCIDR}
	}
	p, err := prefixes(cidrs)
	if err == nil && n.a.cfg.PodCIDRAssigned != nil {
		err = n.a.cfg.PodCIDRAssigned(ctx, p)
	}
	n.mu.Lock()
	n.netErr = err
	n.mu.Unlock()
	if err != nil {
		n.a.log.Warn("set up the pod network", "error", err)
		return
	}
	if n.ready.CompareAndSwap(false, true) {
		close(n.networkUp)
		n.a.setNetworkReady()
	}
}

// keep writes the node's status when it changes, and every five minutes.
func (n *nodeState) keep(ctx context.Context) {
	timer := time.NewTimer(statusCheck)
	defer timer.Stop()
	retry := 100 * time.Millisecond
	for {
		err := n.write(ctx)
		if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) {
			n.a.log.Warn("write node status; trying again", "error", err)
			if !pause(ctx, retry) {
				return
			}
			retry = min(2*retry, 10*time.Second)
			continue
		}
		retry = 100 * time.Millisecond
		n.mu.Lock()
		node, failed := n.node, n.netErr != nil
		n.mu.Unlock()
		timer.Reset(statusCheck)
		if failed {
			timer.Reset(networkRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-timer.C:
			if failed && node.Spec.PodCIDR != "" {
				n.startNetwork(ctx, node)
			}
		}
	}
}

func (n *nodeState) write(ctx context.Context) error {
	n.mu.Lock()
	node := n.node
	n.mu.Unlock()
	if node == nil {
		return nil
	}
	now := n.a.cfg.Now()
	fresh := node.DeepCopy()
	fresh.Status = n.status(node, now)
	if sameNodeStatus(node.Status, fresh.Status) && !beatDue(node.Status, now) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The helper's patch changes a condition by its type and leaves alone what
	// others have added.
	updated, _, err := nodeutil.PatchNodeStatus(n.a.cfg.Client.CoreV1(), types.NodeName(n.a.cfg.NodeName), node, fresh)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	n.mu.Lock()
	if n.node == node {
		n.node = updated
	}
	n.mu.Unlock()
	return nil
}

// sameNodeStatus compares without heartbeat times.
func sameNodeStatus(a, b v1.NodeStatus) bool {
	a, b = *a.DeepCopy(), *b.DeepCopy()
	for i := range a.Conditions {
		a.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	for i := range b.Conditions {
		b.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return equality.Semantic.DeepEqual(a, b)
}

func beatDue(s v1.NodeStatus, now time.Time) bool {
	for _, c := range s.Conditions {
		if c.Type == v1.NodeReady {
			return now.Sub(c.LastHeartbeatTime.Time) >= heartbeat
		}
	}
	return true
}

// status computes the node's status; old is the object it replaces, or nil.
func (n *nodeState) status(old *v1.Node, now time.Time) v1.NodeStatus {
	st := v1.NodeStatus{}
	if old != nil {
		st = *old.Status.DeepCopy()
	}
	st.Capacity, st.Allocatable = withExtended(n.capacity, st.Capacity), withExtended(n.allocatable, st.Capacity)
	st.NodeInfo = n.info
	st.Images = n.images()
	st.Addresses = nil
	for _, ip := range n.a.cfg.NodeIPs {
		st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip.String()})
	}
	st.Addresses = append(st.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: n.a.cfg.NodeName})
	groups := true
	st.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: &groups}
	if tcp, ok := n.a.cfg.Listener.Addr().(*net.TCPAddr); ok {
		st.DaemonEndpoints.KubeletEndpoint.Port = int32(tcp.Port)
	}
	n.mu.Lock()
	netErr := n.netErr
	n.mu.Unlock()
	for _, c := range nodeConditions(n.ready.Load(), netErr, n.a.pressure.conditions(now), outOfPIDs(), n.a.shuttingDown.Load()) {
		setNodeCondition(&st, c, now)
	}
	return st
}

func setNodeCondition(st *v1.NodeStatus, c v1.NodeCondition, now time.Time) {
	c.LastHeartbeatTime, c.LastTransitionTime = stamp(now), stamp(now)
	for i := range st.Conditions {
		old := &st.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	st.Conditions = append(st.Conditions, c)
}

// outOfPIDs says that 95 % of the processes that the machine can have are there. It
// makes the node a worse place for new pods; as upstream by default, none is evicted.
func outOfPIDs() bool {
	var si unix.Sysinfo_t
	var limit int
	if err := unix.Sysinfo(&si); err != nil {
		return false
	}
	_, err := fmt.Sscan(readLine("/proc/sys/kernel/pid_max"), &limit)
	return err == nil && int(si.Procs) > limit*95/100
}

func nodeConditions(networkReady bool, netErr error, pressure []v1.NodeConditionType, noPIDs, shuttingDown bool) []v1.NodeCondition {
	cond := func(t v1.NodeConditionType, bad bool, badReason, badText, goodReason, goodText string) v1.NodeCondition {
		if bad {
			return v1.NodeCondition{Type: t, Status: v1.ConditionTrue, Reason: badReason, Message: badText}
		}
		return v1.NodeCondition{Type: t, Status: v1.ConditionFalse, Reason: goodReason, Message: goodText}
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "node is posting ready status"}
	if !networkReady {
		ready.Status, ready.Reason = v1.ConditionFalse, "KubeletNotReady"
		ready.Message = "container runtime network not ready: waiting for the controllers to assign a podCIDR"
		if netErr != nil {
			ready.Message = "container runtime network not ready: " + netErr.Error()
		}
	}
	if shuttingDown {
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", "node is shutting down"
	}
	return []v1.NodeCondition{
		cond(v1.NodeMemoryPressure, slices.Contains(pressure, v1.NodeMemoryPressure), "KubeletHasInsufficientMemory", "node has insufficient memory available", "KubeletHasSufficientMemory", "node has sufficient memory available"),
		cond(v1.NodeDiskPressure, slices.Contains(pressure, v1.NodeDiskPressure), "KubeletHasDiskPressure", "node has disk pressure", "KubeletHasNoDiskPressure", "node has no disk pressure"),
		cond(v1.NodePIDPressure, noPIDs, "KubeletHasInsufficientPID", "node has insufficient PID available", "KubeletHasSufficientPID", "node has sufficient PID available"),
		ready,
	}
}
