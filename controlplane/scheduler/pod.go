package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	schedulingcorev1 "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/utils/ptr"
)

// Pod is a pod with everything that a decision asks of it computed once.
type Pod struct {
	*corev1.Pod
	// Requests of the whole pod, init containers and overhead considered.
	Requests Resources
	// Ports that the pod takes on its node.
	Ports []HostPort

	priority int32
	labelKey string
	images   []string
	// rated is Requests with something for containers that request nothing.
	rated Resources
	// volumes is set before each decision: what the pod's claims ask of its node.
	volumes *podVolumes

	// selective: not every node will do. only are the nodes that are named, if so.
	selective bool
	only      []string
	affinity  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms

	// near and apart are the required terms of pod affinity and anti-affinity,
	// wishes the preferred ones of both.
	near, apart, wishes []demand
	// demands is what the pod, once it runs, means for others: it guards its domain
	// against apart, and would have near and wishes close or far.
	demands []demand
	// hard and soft are the topology spread constraints.
	hard, soft []spreadConstraint
}

// HostPort is a port on a node's address.
type HostPort struct {
	IP       string
	Protocol corev1.Protocol
	Port     int32
}

func (a HostPort) conflicts(b HostPort) bool {
	return a.Port == b.Port && a.Protocol == b.Protocol && (a.IP == b.IP || a.IP == anyIP || b.IP == anyIP)
}

const anyIP = "0.0.0.0"

// NewPod prepares a pod for decisions.
func NewPod(p *corev1.Pod) *Pod {
	pod := &Pod{
		Pod: p, priority: schedulingcorev1.PodPriority(p), labelKey: labelKey(p.Namespace, p.Labels),
		images: imagesOf(&p.Spec), Ports: hostPorts(&p.Spec),
	}
	pod.Requests, pod.rated = requestsOf(p)
	pod.selective = len(p.Spec.NodeSelector) > 0
	if a := p.Spec.Affinity; a != nil {
		pod.readNodeAffinity(a.NodeAffinity)
		pod.readPodAffinity(a)
	}
	if pod.selective {
		pod.affinity = nodeaffinity.GetRequiredNodeAffinity(p)
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			pod.hard = append(pod.hard, newSpreadConstraint(p, c))
		} else {
			pod.soft = append(pod.soft, newSpreadConstraint(p, c))
		}
	}
	return pod
}

// countsAs says whether two states of one pod on a node are counted alike: its spec
// does not change but for its requests.
func (p *Pod) countsAs(o *Pod) bool {
	return p.labelKey == o.labelKey && p.priority == o.priority && (p.DeletionTimestamp == nil) == (o.DeletionTimestamp == nil) &&
		p.Requests.equal(&o.Requests) && p.rated.equal(&o.rated)
}

func hostPorts(s *corev1.PodSpec) []HostPort {
	var out []HostPort
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.HostPort == 0 {
					continue
				}
				hp := HostPort{IP: port.HostIP, Protocol: port.Protocol, Port: port.HostPort}
				if hp.IP == "" {
					hp.IP = anyIP
				}
				if hp.Protocol == "" {
					hp.Protocol = corev1.ProtocolTCP
				}
				out = append(out, hp)
			}
		}
	}
	return out
}

func (p *Pod) readNodeAffinity(a *corev1.NodeAffinity) {
	if a == nil {
		return
	}
	p.selective = p.selective || a.RequiredDuringSchedulingIgnoredDuringExecution != nil
	p.only = onlyNodes(a)
	if len(a.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		// An invalid term was refused by the API; one that got in prefers nothing.
		p.preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

// hardAffinityWeight is what a running pod's required affinity is worth to the pods
// that it is about, as in Kubernetes (hardPodAffinityWeight).
const hardAffinityWeight = 1

func (p *Pod) readPodAffinity(a *corev1.Affinity) {
	if a := a.PodAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			d := p.demand(&a.RequiredDuringSchedulingIgnoredDuringExecution[i], hardAffinityWeight)
			p.near, p.demands = append(p.near, d), append(p.demands, d)
		}
		for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			t := &a.PreferredDuringSchedulingIgnoredDuringExecution[i]
			p.wishes = append(p.wishes, p.demand(&t.PodAffinityTerm, int64(t.Weight)))
		}
	}
	if a := a.PodAntiAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			d := p.demand(&a.RequiredDuringSchedulingIgnoredDuringExecution[i], 0)
			p.apart, p.demands = append(p.apart, d), append(p.demands, d)
		}
		for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
			t := &a.PreferredDuringSchedulingIgnoredDuringExecution[i]
			p.wishes = append(p.wishes, p.demand(&t.PodAffinityTerm, -int64(t.Weight)))
		}
	}
	p.demands = append(p.demands, p.wishes...)
}

func (p *Pod) demand(t *corev1.PodAffinityTerm, weight int64) demand {
	namespaces := t.Namespaces
	if len(namespaces) == 0 && t.NamespaceSelector == nil {
		namespaces = []string{p.Namespace}
	}
	selector := selectorOf(t.LabelSelector)
	if t.LabelSelector != nil {
		selector = withKeys(selector, t.LabelSelector, p.Labels, t.MatchLabelKeys, selection.In)
		selector = withKeys(selector, t.LabelSelector, p.Labels, t.MismatchLabelKeys, selection.NotIn)
	}
	return demand{match: newMatch(namespaces, t.NamespaceSelector, selector), key: t.TopologyKey, weight: weight}
}

// withKeys adds to a selector that the pods must have the same, or another, value
// as this one of each key that this one has. The API server adds the same to the
// selector of a pod that is created (KEP-3633); what it has added is not added
// again from labels that may have changed since.
func withKeys(s labels.Selector, from *metav1.LabelSelector, own map[string]string, keys []string, op selection.Operator) labels.Selector {
	for _, key := range keys {
		value, ok := own[key]
		if !ok || mentions(from, key) {
			continue
		}
		if r, err := labels.NewRequirement(key, op, []string{value}); err == nil {
			s = s.Add(*r)
		}
	}
	return s
}

func mentions(s *metav1.LabelSelector, key string) bool {
	for i := range s.MatchExpressions {
		if s.MatchExpressions[i].Key == key {
			return true
		}
	}
	return false
}

func newSpreadConstraint(p *corev1.Pod, c *corev1.TopologySpreadConstraint) spreadConstraint {
	selector := selectorOf(c.LabelSelector)
	if c.LabelSelector != nil {
		selector = withKeys(selector, c.LabelSelector, p.Labels, c.MatchLabelKeys, selection.In)
	}
	return spreadConstraint{
		key: c.TopologyKey, maxSkew: c.MaxSkew, minDomains: ptr.Deref(c.MinDomains, 1),
		anyAffinity: ptr.Deref(c.NodeAffinityPolicy, corev1.NodeInclusionPolicyHonor) == corev1.NodeInclusionPolicyIgnore,
		anyTaints:   ptr.Deref(c.NodeTaintsPolicy, corev1.NodeInclusionPolicyIgnore) == corev1.NodeInclusionPolicyIgnore,
		match:       newMatch([]string{p.Namespace}, nil, selector), self: selector.Matches(labels.Set(p.Labels)),
	}
}
