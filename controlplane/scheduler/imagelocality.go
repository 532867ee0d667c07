package scheduler

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// imageLocality prefers nodes that have the pod's images, by size. An image that
// few nodes have counts for less, so that not all its pods end on one of them.
var imageLocality = Plugin{Name: "ImageLocality", Score: imagesPresent, Weight: 1}

// Bounds between which the size of what is present matters, as in Kubernetes; the
// upper one for each container.
const (
	leastImages = 23 << 20
	mostImages  = 1000 << 20
)

func imagesPresent(c *Cluster, p *Pod, nodes []*Node, out []int64) bool {
	var known []string
	for _, name := range p.images {
		if c.images[name] > 0 {
			known = append(known, name)
		}
	}
	if len(known) == 0 {
		return false
	}
	most := int64(mostImages * len(p.images))
	for i, n := range nodes {
		var size int64
		for _, name := range known {
			if s, ok := n.images[name]; ok {
				size += int64(float64(s) * float64(c.images[name]) / float64(len(c.nodes)))
			}
		}
		out[i] = MaxScore * (min(max(size, leastImages), most) - leastImages) / (most - leastImages)
	}
	return true
}

// imagesOf returns the images of a pod's containers.
func imagesOf(p *corev1.PodSpec) []string {
	out := make([]string, 0, len(p.InitContainers)+len(p.Containers))
	for i := range p.InitContainers {
		out = append(out, imageName(p.InitContainers[i].Image))
	}
	for i := range p.Containers {
		out = append(out, imageName(p.Containers[i].Image))
	}
	return out
}

// imageName adds the tag that is meant where there is none. An image by digest is
// the same in every repository.
func imageName(name string) string {
	if _, digest, ok := strings.Cut(name, "@"); ok {
		return digest
	}
	if strings.LastIndexByte(name, ':') <= strings.LastIndexByte(name, '/') {
		return name + ":latest"
	}
	return name
}

// present returns the sizes of a node's images by every name that they have.
func present(n *corev1.Node) map[string]int64 {
	if len(n.Status.Images) == 0 {
		return nil
	}
	out := make(map[string]int64, 2*len(n.Status.Images))
	for i := range n.Status.Images {
		for _, name := range n.Status.Images[i].Names {
			out[imageName(name)] = n.Status.Images[i].SizeBytes
		}
	}
	return out
}
