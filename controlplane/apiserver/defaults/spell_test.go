package defaults

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestReadByMany: an object that has its defaults can be written and copied by many
// at once, as one in the watch cache is. The race detector sees it if not.
func TestReadByMany(t *testing.T) {
	limit := resource.MustParse("1500Mi")
	limit.Add(resource.MustParse("1")) // forgets its text
	p := &corev1.Pod{Spec: corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}},
		Containers: []corev1.Container{{Name: "c", Env: []corev1.EnvVar{{Name: "E", ValueFrom: &corev1.EnvVarSource{
			ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: *resource.NewMilliQuantity(5, resource.DecimalSI)},
		}}}}},
	}}
	Pod(p)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if b, err := p.Marshal(); err != nil || len(b) == 0 {
				t.Error(err)
			}
			_ = p.DeepCopy()
		})
	}
	wg.Wait()
}
