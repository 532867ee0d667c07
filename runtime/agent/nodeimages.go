package agent

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/registry"
)

// Bounds of what a node says of its images, as kubelet's: the largest ones, and of
// each not every name.
const (
	maxImages     = 50
	maxImageNames = 5
)

// imageLister is a puller that knows what it has on disk.
type imageLister interface{ Images() []registry.ImageInfo }

// images are those on the node, the largest first: the scheduler prefers nodes that
// have a pod's images.
func (n *nodeState) images() []v1.ContainerImage {
	store, ok := n.a.cfg.Images.(imageLister)
	if !ok {
		return nil
	}
	return nodeImages(store.Images())
}

func nodeImages(list []registry.ImageInfo) []v1.ContainerImage {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b registry.ImageInfo) int { return cmp.Compare(b.Size, a.Size) })
	var out []v1.ContainerImage
	for _, i := range list[:min(len(list), maxImages)] {
		// Pods of a commit name their images by digest, in whatever repository.
		names := append([]string{"<none>@" + i.Digest}, i.References...)
		out = append(out, v1.ContainerImage{Names: names[:min(len(names), maxImageNames)], SizeBytes: i.Size})
	}
	return out
}
