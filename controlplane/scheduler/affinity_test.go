package scheduler

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func zone(z string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = z }
}

func selecting(value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}
}

func app(value string) func(*corev1.Pod) { return labelled("app", value) }

func in(namespace string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Namespace = namespace }
}

func podAffinity(p *corev1.Pod) *corev1.PodAffinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.PodAffinity == nil {
		p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{}
	}
	return p.Spec.Affinity.PodAffinity
}

func podAntiAffinity(p *corev1.Pod) *corev1.PodAntiAffinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.PodAntiAffinity == nil {
		p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{}
	}
	return p.Spec.Affinity.PodAntiAffinity
}

type termChange = func(*corev1.PodAffinityTerm)

func affinityTerm(key, value string, change ...termChange) corev1.PodAffinityTerm {
	t := corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: selecting(value)}
	for _, f := range change {
		f(&t)
	}
	return t
}

func near(key, value string, change ...termChange) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		a := podAffinity(p)
		a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, affinityTerm(key, value, change...))
	}
}

func apart(key, value string, change ...termChange) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		a := podAntiAffinity(p)
		a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, affinityTerm(key, value, change...))
	}
}

func ratherNear(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		a := podAffinity(p)
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution,
			corev1.WeightedPodAffinityTerm{Weight: 100, PodAffinityTerm: affinityTerm(key, value)})
	}
}

func ratherApart(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		a := podAntiAffinity(p)
		a.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PreferredDuringSchedulingIgnoredDuringExecution,
			corev1.WeightedPodAffinityTerm{Weight: 100, PodAffinityTerm: affinityTerm(key, value)})
	}
}

func spreading(key string, maxSkew int32, value string, change ...func(*corev1.TopologySpreadConstraint)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.TopologySpreadConstraint{TopologyKey: key, MaxSkew: maxSkew, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selecting(value)}
		for _, f := range change {
			f(&c)
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}

func ifPossible(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway }

const (
	host   = corev1.LabelHostname
	inZone = corev1.LabelTopologyZone
)

// on puts pods on a node, each made by the changes.
type on struct {
	node   string
	number int
	change []func(*corev1.Pod)
}

func runs(node string, number int, change ...func(*corev1.Pod)) on { return on{node, number, change} }

// street is four nodes: a and b in zone 1, c in zone 2, d in none.
func street(running ...on) *Cluster {
	c := cluster(node("a", "4", "4Gi", zone("1")), node("b", "4", "4Gi", zone("1")), node("c", "4", "4Gi", zone("2")), node("d", "4", "4Gi"))
	c.SetNamespace("default", map[string]string{"team": "one"})
	c.SetNamespace("other", map[string]string{"team": "two"})
	for i, r := range running {
		for j := range r.number {
			c.Place(NewPod(pod(fmt.Sprintf("r%d-%d", i, j), r.change...)), r.node)
		}
	}
	return c
}

// fitting are the names of the nodes that pass all filters.
func fitting(c *Cluster, p *Pod) string {
	var out strings.Builder
	d := c.decision(p)
	for _, n := range c.Nodes() {
		if v := d.on(n); v.fits() {
			out.WriteString(n.Name)
		}
	}
	return out.String()
}

// TestPlacementFilters: where a pod can go, given the pods that are there.
func TestPlacementFilters(t *testing.T) {
	everywhere := func(t *corev1.PodAffinityTerm) { t.NamespaceSelector = &metav1.LabelSelector{} }
	teamTwo := func(t *corev1.PodAffinityTerm) {
		t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "two"}}
	}
	otherToo := func(t *corev1.PodAffinityTerm) { t.Namespaces = []string{"other"} }
	minDomains := func(n int32) func(*corev1.TopologySpreadConstraint) {
		return func(c *corev1.TopologySpreadConstraint) { c.MinDomains = &n }
	}
	sameVersion := func(c *corev1.TopologySpreadConstraint) { c.MatchLabelKeys = []string{"version"} }
	leaving := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }
	notOn := func(nodes ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			if p.Spec.Affinity == nil {
				p.Spec.Affinity = &corev1.Affinity{}
			}
			p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: host, Operator: corev1.NodeSelectorOpNotIn, Values: nodes}}}},
			}}
		}
	}
	for _, c := range []struct {
		name    string
		running []on
		pod     []func(*corev1.Pod)
		want    string
	}{
		{"nothing asked", []on{runs("a", 2, app("db"))}, nil, "abcd"},
		{"near, by node", []on{runs("b", 1, app("db"))}, []func(*corev1.Pod){near(host, "db")}, "b"},
		{"near, by zone", []on{runs("b", 1, app("db"))}, []func(*corev1.Pod){near(inZone, "db")}, "ab"},
		{"near to one that is nowhere", nil, []func(*corev1.Pod){near(host, "db")}, ""},
		{"near to itself, the first", nil, []func(*corev1.Pod){app("db"), near(host, "db")}, "abcd"},
		{"near to itself by zone, the first, where there are zones", nil, []func(*corev1.Pod){app("db"), near(inZone, "db")}, "abc"},
		{"near to itself, the second", []on{runs("c", 1, app("db"))}, []func(*corev1.Pod){app("db"), near(host, "db")}, "c"},
		{"near to two kinds, which no pod is", []on{runs("a", 1, app("db")), runs("a", 1, app("web"))}, []func(*corev1.Pod){near(host, "db"), near(host, "web")}, ""},
		{"near to a pod by two topologies", []on{runs("b", 1, app("db"))}, []func(*corev1.Pod){near(host, "db"), near(inZone, "db")}, "b"},
		{"near is about the own namespace", []on{runs("a", 1, app("db"), in("other"))}, []func(*corev1.Pod){near(host, "db")}, ""},
		{"near in a namespace by name", []on{runs("a", 1, app("db"), in("other"))}, []func(*corev1.Pod){near(host, "db", otherToo)}, "a"},
		{"near in namespaces by label", []on{runs("a", 1, app("db"), in("other")), runs("b", 1, app("db"))}, []func(*corev1.Pod){near(host, "db", teamTwo)}, "a"},
		{"near in all namespaces", []on{runs("a", 1, app("db"), in("other")), runs("b", 1, app("db"))}, []func(*corev1.Pod){near(host, "db", everywhere)}, "ab"},
		{"near to those of the same version", []on{runs("a", 1, app("db"), labelled("version", "1")), runs("b", 1, app("db"), labelled("version", "2"))},
			[]func(*corev1.Pod){labelled("version", "2"), near(host, "db", func(t *corev1.PodAffinityTerm) { t.MatchLabelKeys = []string{"version"} })}, "b"},
		{"near to those of other versions", []on{runs("a", 1, app("db"), labelled("version", "1")), runs("b", 1, app("db"), labelled("version", "2"))},
			[]func(*corev1.Pod){labelled("version", "2"), near(host, "db", func(t *corev1.PodAffinityTerm) { t.MismatchLabelKeys = []string{"version"} })}, "a"},

		{"apart, by node", []on{runs("b", 1, app("web"))}, []func(*corev1.Pod){apart(host, "web")}, "acd"},
		{"apart, by zone; a node without zone is apart from all", []on{runs("b", 1, app("web"))}, []func(*corev1.Pod){apart(inZone, "web")}, "cd"},
		{"others stay apart from it", []on{runs("b", 1, apart(inZone, "web"))}, []func(*corev1.Pod){app("web")}, "cd"},
		{"others stay apart from something else", []on{runs("b", 1, apart(inZone, "db"))}, []func(*corev1.Pod){app("web")}, "abcd"},
		{"apart is about the own namespace", []on{runs("b", 1, apart(host, "web"), in("other"))}, []func(*corev1.Pod){app("web")}, "abcd"},
		{"others stay apart from all namespaces", []on{runs("b", 1, apart(host, "web", everywhere), in("other"))}, []func(*corev1.Pod){app("web")}, "acd"},
		{"a pod that is leaving is still there", []on{runs("b", 1, app("web"), leaving)}, []func(*corev1.Pod){apart(host, "web")}, "acd"},

		{"spread by node", []on{runs("a", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(host, 1, "web")}, "bcd"},
		{"spread by node, skew 2", []on{runs("a", 1, app("web")), runs("b", 2, app("web"))}, []func(*corev1.Pod){app("web"), spreading(host, 2, "web")}, "acd"},
		{"spread by zone", []on{runs("a", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web")}, "c"},
		{"spread by zone, even", []on{runs("a", 1, app("web")), runs("c", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web")}, "abc"},
		{"spread by zone and node", []on{runs("a", 1, app("web")), runs("c", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web"), spreading(host, 1, "web")}, "b"},
		{"pods without zone don't count", []on{runs("d", 5, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web")}, "abc"},
		{"pods of other namespaces don't count", []on{runs("a", 5, app("web"), in("other"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web")}, "abc"},
		{"pods that are leaving don't count", []on{runs("a", 5, app("web"), leaving)}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web")}, "abc"},
		{"a pod that is not selected does not count", []on{runs("a", 1, app("web"))}, []func(*corev1.Pod){spreading(inZone, 1, "web")}, "abc"},
		{"too few domains", []on{runs("a", 1, app("web")), runs("c", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web", minDomains(3))}, ""},
		{"domains enough", []on{runs("a", 1, app("web")), runs("c", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web", minDomains(2))}, "abc"},
		{"if possible is no filter", []on{runs("a", 9, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web", ifPossible)}, "abcd"},
		{"spread within one version", []on{runs("a", 3, app("web"), labelled("version", "1"))}, []func(*corev1.Pod){app("web"), labelled("version", "2"), spreading(inZone, 1, "web", sameVersion)}, "abc"},
		{"nodes that the pod can't use don't count", []on{runs("a", 1, app("web"))}, []func(*corev1.Pod){app("web"), notOn("c", "d"), spreading(host, 1, "web")}, "b"},
		{"unless told so", []on{runs("a", 1, app("web")), runs("b", 1, app("web"))}, []func(*corev1.Pod){app("web"), notOn("c", "d"), spreading(host, 1, "web", func(c *corev1.TopologySpreadConstraint) {
			c.NodeAffinityPolicy = ptr.To(corev1.NodeInclusionPolicyIgnore)
		})}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fitting(street(c.running...), NewPod(pod("p", c.pod...))); got != c.want {
				t.Errorf("fits on %q, want %q", got, c.want)
			}
		})
	}
}

// TestPlacementScores: which of the nodes of a street a pod prefers.
func TestPlacementScores(t *testing.T) {
	for _, c := range []struct {
		name    string
		running []on
		pod     []func(*corev1.Pod)
		want    string
	}{
		{"rather near", []on{runs("b", 1, app("db"))}, []func(*corev1.Pod){ratherNear(host, "db")}, "b"},
		{"rather apart", []on{runs("a", 1, app("db")), runs("b", 1, app("db")), runs("c", 1, app("db"))}, []func(*corev1.Pod){ratherApart(host, "db")}, "d"},
		{"others would be near it", []on{runs("c", 1, ratherNear(host, "web"))}, []func(*corev1.Pod){app("web")}, "c"},
		{"others would be apart from it", []on{runs("a", 1, ratherApart(inZone, "web"))}, []func(*corev1.Pod){app("web"), onlyOn("a", "c")}, "c"},
		{"others must be near it", []on{runs("b", 1, app("web"), near(host, "web"))}, []func(*corev1.Pod){app("web"), onlyOn("a", "b")}, "b"},
		{"spread over zones if possible", []on{runs("a", 2, app("web")), runs("c", 1, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web", ifPossible)}, "c"},
		{"nodes without zone come last", []on{runs("a", 2, app("web")), runs("c", 2, app("web"))}, []func(*corev1.Pod){app("web"), spreading(inZone, 1, "web", ifPossible), onlyOn("b", "d")}, "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := Schedule(street(c.running...), NewPod(pod("p", c.pod...)), 0)
			if err != nil || res.Node != c.want {
				t.Errorf("got %q, %v; want %q", res.Node, err, c.want)
			}
		})
	}
}

// TestDefaultSpread: pods without constraints are spread over zones by what their
// Services select.
func TestDefaultSpread(t *testing.T) {
	c := street(runs("a", 3, app("web")), runs("b", 3, app("web")), runs("d", 3, app("web")))
	c.SetService("default", "web", map[string]string{"app": "web"})
	res, err := Schedule(c, NewPod(pod("p", app("web"), requests("100m", "1Gi"))), 0)
	if err != nil || res.Node != "c" {
		t.Errorf("got %q, %v; want c", res.Node, err)
	}
}
