package authz

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/component-helpers/storage/ephemeral"
)

// LabelNode names the node that has the directory of a volume that gitk8s made.
// Its worker follows the volumes with this label and removes their directories.
const LabelNode = "gitk8s.dev/node"

// Volumes answers the questions about volumes that a worker's rights depend on.
type Volumes interface {
	// Volume returns a volume, or an error when there is none.
	Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
}

// nodeVolume lets a worker follow the volumes whose directories it has and let go
// of them, and read those that its pods' claims are bound to. What it may change
// of its own is looked at in admission.
func (a *Authorizer) nodeVolume(ctx context.Context, node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	verb := attrs.GetVerb()
	switch {
	case attrs.GetSubresource() != "":
		return refuse("a node may not use persistentvolumes/%s", attrs.GetSubresource())
	case (verb == "list" || verb == "watch") && labelled(attrs, node):
		return authorizer.DecisionAllow, "", nil
	case (verb != "get" && verb != "patch") || attrs.GetName() == "":
		return refuse("node %q may list and watch volumes only with the label selector %s=%s", node, LabelNode, node)
	}
	pv, err := a.volumes.Volume(ctx, attrs.GetName())
	if err != nil {
		return refuse("volume %s is not of node %q", attrs.GetName(), node)
	}
	if pv.Labels[LabelNode] == node {
		return authorizer.DecisionAllow, "", nil
	}
	if ref := pv.Spec.ClaimRef; verb == "get" && ref != nil {
		used, err := a.refers(ctx, node, ref.Namespace, func(pod *corev1.Pod) bool { return slices.Contains(Claims(pod), ref.Name) })
		if err != nil {
			return authorizer.DecisionNoOpinion, "", err
		}
		if used {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return refuse("no pod on node %q uses volume %s", node, attrs.GetName())
}

// labelled tells whether a request's label selector confines it to a node's own
// volumes.
func labelled(attrs authorizer.Attributes, node string) bool {
	requirements, err := attrs.GetLabelSelector()
	if err != nil {
		return false
	}
	value, exact := labels.NewSelector().Add(requirements...).RequiresExactMatch(LabelNode)
	return exact && value == node
}

// Claims returns the names of the PersistentVolumeClaims that a pod uses.
func Claims(pod *corev1.Pod) []string {
	var out []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, ephemeral.VolumeClaimName(pod, v))
		}
	}
	return out
}
