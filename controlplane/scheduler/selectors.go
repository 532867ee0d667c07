package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// selectors are those of Services and of the controllers of pods: pods without
// spread constraints are spread with what they have in common.
type selectors struct {
	// services by namespace and name.
	services map[string]map[string]labels.Set
	owners   map[Owner]labels.Selector
	// found are the constraints of pods by labelKey and owner.
	found map[selectorKey][]spreadConstraint
}

type selectorKey struct{ labels, kind, name string }

// Owner is a ReplicationController, ReplicaSet or StatefulSet.
type Owner struct{ Kind, Namespace, Name string }

func newSelectors() selectors {
	return selectors{services: map[string]map[string]labels.Set{}, owners: map[Owner]labels.Selector{}, found: map[selectorKey][]spreadConstraint{}}
}

// SetService says which pods a Service selects; nil when it is gone.
func (c *Cluster) SetService(namespace, name string, selector map[string]string) {
	s := &c.selectors
	clear(s.found)
	if len(selector) == 0 {
		delete(s.services[namespace], name)
		return
	}
	if s.services[namespace] == nil {
		s.services[namespace] = map[string]labels.Set{}
	}
	s.services[namespace][name] = selector
}

// SetOwner says which pods a controller selects; nil when it is gone.
func (c *Cluster) SetOwner(o Owner, selector *metav1.LabelSelector) {
	clear(c.selectors.found)
	if selector == nil {
		delete(c.selectors.owners, o)
		return
	}
	c.selectors.owners[o] = selectorOf(selector)
}

// Constraints of pods that have none of their own ("Pod Topology Spread
// Constraints", "Built-in default constraints").
var defaultSpread = []struct {
	key     string
	maxSkew int32
}{{corev1.LabelHostname, 3}, {corev1.LabelTopologyZone, 5}}

// foundLimit bounds what is remembered between two changes of selectors.
const foundLimit = 10_000

// defaults returns the constraints of a pod that has none of its own.
func (s *selectors) defaults(p *Pod) []spreadConstraint {
	key := selectorKey{labels: p.labelKey}
	if ref := metav1.GetControllerOfNoCopy(p); ref != nil {
		key.kind, key.name = ref.Kind, ref.Name
	}
	if out, ok := s.found[key]; ok {
		return out
	}
	var out []spreadConstraint
	if selector := s.of(p, key); !selector.Empty() {
		for _, d := range defaultSpread {
			out = append(out, spreadConstraint{
				key: d.key, maxSkew: d.maxSkew, minDomains: 1, anyTaints: true,
				match: newMatch([]string{p.Namespace}, nil, selector), self: selector.Matches(labels.Set(p.Labels)),
			})
		}
	}
	if len(s.found) >= foundLimit {
		clear(s.found)
	}
	s.found[key] = out
	return out
}

// of joins the selectors of the Services that select a pod and of its controller.
func (s *selectors) of(p *Pod, key selectorKey) labels.Selector {
	joined := labels.Set{}
	for _, set := range s.services[p.Namespace] {
		if set.AsSelectorPreValidated().Matches(labels.Set(p.Labels)) {
			joined = labels.Merge(joined, set)
		}
	}
	selector := joined.AsSelectorPreValidated()
	if owner := s.owners[Owner{key.kind, p.Namespace, key.name}]; owner != nil {
		if r, ok := owner.Requirements(); ok {
			selector = selector.Add(slices.Clone(r)...)
		}
	}
	return selector
}
