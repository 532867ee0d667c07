package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Places are what is known of the nodes.
type Places struct {
	// Zones of the nodes that have pods of the Service, by node.
	Zones map[string]string
	// Capacity is looked at for a Service that wants its endpoints allotted to zones, and
	// may be left empty for others.
	Capacity Capacity
}

// Capacity is how large each zone is.
type Capacity struct {
	// CPU that can be allocated in a zone, in thousandths.
	CPU map[string]int64
	// Unknown is the first node whose zone or CPU is not known, or empty.
	Unknown string
}

// CapacityOf adds up the nodes that are Ready. Those of the control plane do not count
// (page "Topology Aware Routing", section "Constraints").
func CapacityOf(nodes []*corev1.Node) Capacity {
	out := Capacity{CPU: map[string]int64{}}
	for _, n := range nodes {
		share := shareOf(n)
		switch {
		case !share.counts:
		case share.zone == "" || share.cpu <= 0:
			if out.Unknown == "" || n.Name < out.Unknown {
				out.Unknown = n.Name
			}
		default:
			out.CPU[share.zone] += share.cpu
		}
	}
	return out
}

// share is what a node adds to its zone.
type share struct {
	counts bool
	zone   string
	cpu    int64
}

func shareOf(n *corev1.Node) share {
	if n == nil {
		return share{}
	}
	for _, role := range []string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"} {
		if _, ok := n.Labels[role]; ok {
			return share{}
		}
	}
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	if !ready {
		return share{}
	}
	return share{true, n.Labels[corev1.LabelTopologyZone], n.Status.Allocatable.Cpu().MilliValue()}
}

// Auto says that a Service wants its endpoints allotted to zones (KEP-2433). The name that
// the annotation had before Kubernetes 1.27 is looked at first, as there.
func Auto(svc *corev1.Service) bool {
	mode, ok := svc.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	if !ok {
		mode = svc.Annotations[corev1.AnnotationTopologyMode]
	}
	return mode == "Auto" || mode == "auto"
}

// Allotment says whether the endpoints of one family are allotted to zones.
type Allotment struct {
	Family corev1.IPFamily
	// Problem is why they are not, or empty.
	Problem string
}

// allot gives every ready endpoint a hint for one zone, so that no zone has fewer than
// enough says; hints are those of now, by pod. An endpoint is for its own zone unless
// another one is short of them; one that was lent stays lent to the same zone while that
// is so. It returns why that cannot be, and then there are no hints.
func allot(c Capacity, ready []*discoveryv1.Endpoint, hints map[string]string) (problem string) {
	for _, e := range ready {
		e.Hints = nil
	}
	switch {
	case c.Unknown != "":
		return fmt.Sprintf("node %s has no label %s, or says of no CPU that can be allocated", c.Unknown, corev1.LabelTopologyZone)
	case len(c.CPU) == 0:
		return "no node is Ready"
	case len(c.CPU) == 1:
		return "all nodes that are Ready are in one zone"
	case len(ready) < len(c.CPU):
		return fmt.Sprintf("%d ready endpoints are not enough for %d zones", len(ready), len(c.CPU))
	}
	l := lending{hints: hints, balance: map[string]int{}, at: map[string][]*discoveryv1.Endpoint{}}
	least := 0
	for zone, n := range enough(c.CPU, len(ready)) {
		l.balance[zone] = -n
		least += n
	}
	if least > len(ready) {
		return fmt.Sprintf("%d ready endpoints in %d zones: some would get over %d %% more than their share", len(ready), len(c.CPU), overloadPercent)
	}
	for _, e := range ready {
		if e.Zone == nil {
			return fmt.Sprintf("endpoint %s is in no zone", e.TargetRef.Name)
		}
		l.at[*e.Zone] = append(l.at[*e.Zone], e)
		l.balance[*e.Zone]++
	}
	for _, zone := range slices.Sorted(maps.Keys(l.balance)) {
		if c.CPU[zone] == 0 {
			l.strange = append(l.strange, zone)
		} else {
			l.zones = append(l.zones, zone)
		}
	}
	// Endpoints in zones that have no capacity go elsewhere in any case, so they go first.
	for _, from := range [][]string{l.strange, l.zones} {
		l.keep(from)
		l.lend(from)
	}
	l.settle(c.CPU, ready)
	return ""
}

// overloadPercent is how much more than its even share of the traffic an endpoint may be
// expected to get.
const overloadPercent = 20

// enough is how many of n endpoints each zone needs at least, so that none of its
// endpoints gets more than overloadPercent above an even share, if the traffic of a zone
// is as large as its share of the CPU.
func enough(cpu map[string]int64, n int) map[string]int {
	var total int64
	for _, c := range cpu {
		total += c
	}
	out := map[string]int{}
	for zone, c := range cpu {
		share, whole := c*int64(n)*100, total*(100+overloadPercent)
		out[zone] = int((share + whole - 1) / whole)
	}
	return out
}

// lending is how endpoints come to zones that have too few.
type lending struct {
	hints          map[string]string
	zones, strange []string                           // those with a capacity, and others, sorted
	at             map[string][]*discoveryv1.Endpoint // without a hint so far, by their own zone
	// balance is how many endpoints a zone has more than it needs, negative for those that
	// it lacks. Of a strange zone all are to be had.
	balance map[string]int
}

func (l *lending) give(e *discoveryv1.Endpoint, from, to string) {
	e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: to}}}
	l.balance[from]--
	l.balance[to]++
}

// keep leaves those lent that are still needed where they are.
func (l *lending) keep(lenders []string) {
	for _, from := range lenders {
		l.at[from] = slices.DeleteFunc(l.at[from], func(e *discoveryv1.Endpoint) bool {
			to := l.hints[e.TargetRef.Name]
			needed := slices.Contains(l.zones, to) && l.balance[to] < 0 && l.balance[from] > 0
			if needed {
				l.give(e, from, to)
			}
			return needed
		})
	}
}

// lend fills what zones lack from the lender that has most to give, as long as one has.
func (l *lending) lend(lenders []string) {
	for _, to := range l.zones {
		for l.balance[to] < 0 {
			from := ""
			for _, zone := range lenders {
				if l.balance[zone] > max(0, l.balance[from]) {
					from = zone
				}
			}
			if from == "" {
				return
			}
			last := len(l.at[from]) - 1
			l.give(l.at[from][last], from, to)
			l.at[from] = l.at[from][:last]
		}
	}
}

// settle gives the rest to their own zones, and those of strange zones to the ones that
// have fewest for their size.
func (l *lending) settle(cpu map[string]int64, ready []*discoveryv1.Endpoint) {
	for _, zone := range l.zones {
		for _, e := range l.at[zone] {
			l.give(e, zone, zone)
		}
	}
	has := map[string]int64{}
	for _, e := range ready {
		if e.Hints != nil {
			has[e.Hints.ForZones[0].Name]++
		}
	}
	for _, from := range l.strange {
		for _, e := range l.at[from] {
			to := l.hints[e.TargetRef.Name]
			if !slices.Contains(l.zones, to) {
				to = slices.MaxFunc(l.zones, func(a, b string) int { return cmp.Compare(cpu[a]*has[b], cpu[b]*has[a]) })
			}
			l.give(e, from, to)
			has[to]++
		}
	}
}
