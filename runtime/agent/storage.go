package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	// storageCheck is how often the local storage of pods with limits is measured, as
	// by the kubelet.
	storageCheck = 10 * time.Second
	// evictionGrace is left to a pod that has used more than it may.
	evictionGrace = time.Second

	reasonEvicted = "Evicted"
)

// storageUse is what a pod has on the node's disk, in bytes.
type storageUse struct {
	// volumes are its emptyDirs on disk, containers their writable layers and logs.
	volumes, containers map[string]int64
	// inodes are all that these have.
	inodes int64
}

// limitsStorage says whether anything of the pod's local storage is bounded.
func limitsStorage(pod *v1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if onDisk(&v) && v.EmptyDir.SizeLimit != nil {
			return true
		}
	}
	for _, c := range podContainers(pod) {
		if !c.Resources.Limits.StorageEphemeral().IsZero() {
			return true
		}
	}
	return false
}

// onDisk says that a volume is an emptyDir that takes room on the node's disk.
func onDisk(v *v1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault
}

// exceeded says by which use the pod is over a limit, or "" ("Local ephemeral
// storage", setting requests and limits).
func exceeded(pod *v1.Pod, use storageUse) string {
	var total int64
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !onDisk(v) {
			continue
		}
		total += use.volumes[v.Name]
		if limit := v.EmptyDir.SizeLimit; limit != nil && !limit.IsZero() && use.volumes[v.Name] > limit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	for _, used := range use.containers {
		total += used
	}
	if limit := podStorageLimit(pod); !limit.IsZero() && total > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, c := range podContainers(pod) {
		if limit := c.Resources.Limits.StorageEphemeral(); !limit.IsZero() && use.containers[c.Name] > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

// podStorageLimit is the sum of the containers that run together, or the largest
// init container if that is more.
func podStorageLimit(pod *v1.Pod) *resource.Quantity {
	sum := resource.NewQuantity(0, resource.BinarySI)
	for _, c := range pod.Spec.Containers {
		sum.Add(*c.Resources.Limits.StorageEphemeral())
	}
	most := *resource.NewQuantity(0, resource.BinarySI)
	for _, c := range pod.Spec.InitContainers {
		limit := *c.Resources.Limits.StorageEphemeral()
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sum.Add(limit)
		} else if limit.Cmp(most) > 0 {
			most = limit
		}
	}
	if most.Cmp(*sum) > 0 {
		return &most
	}
	return sum
}

// watchStorage evicts pods that use more local storage than they may, for as long as
// ctx lives.
func (a *Agent) watchStorage(ctx context.Context) {
	for pause(ctx, storageCheck) {
		a.checkStorage(ctx)
	}
}

func (a *Agent) checkStorage(ctx context.Context) {
	var bounded []*worker
	a.eachWorker(func(w *worker) {
		if v := w.view.Load(); v != nil && limitsStorage(v.pod) {
			bounded = append(bounded, w)
		}
	})
	for _, w := range bounded {
		v := w.view.Load()
		if why := exceeded(v.pod, a.measure(ctx, w, v)); why != "" {
			w.post(func() { w.evict(why) })
		}
	}
}

// measure adds up what a pod has on disk.
func (a *Agent) measure(ctx context.Context, w *worker, v *podView) storageUse {
	use := storageUse{volumes: map[string]int64{}, containers: map[string]int64{}}
	add := func(sizes map[string]int64, name, dir string) {
		bytes, inodes := diskUse(dir)
		sizes[name] += bytes
		use.inodes += inodes
	}
	for i := range v.pod.Spec.Volumes {
		if vol := &v.pod.Spec.Volumes[i]; onDisk(vol) {
			if path, err := a.volumes.Path(v.pod, vol.Name); err == nil {
				add(use.volumes, vol.Name, path)
			}
		}
	}
	for _, runs := range []map[string]instance{v.cur, v.prev} {
		for name, in := range runs {
			layer, err := a.cfg.Runtime.WritableLayer(ctx, w.uid, in.ID)
			if err == nil && layer != "" {
				add(use.containers, name, layer)
			}
		}
	}
	for name := range v.cur {
		add(use.containers, name, filepath.Join(a.podLogDir(v.pod), name))
	}
	return use
}

// diskUse is what the files below a directory occupy and how many they are, hard links
// counted once, on its own file system. What vanishes meanwhile counts for nothing.
func diskUse(dir string) (bytes, inodes int64) {
	var device uint64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			if e != nil && e.IsDir() && !errors.Is(err, fs.ErrNotExist) {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
			return nil
		case device == 0:
			device = st.Dev
		case st.Dev != device:
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !e.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		bytes += st.Blocks * 512
		inodes++
		return nil
	})
	return bytes, inodes
}

// evict ends the pod for what it uses, unless the node needs it.
func (w *worker) evict(why string) {
	if w.s.ending() || w.critical {
		return
	}
	now := w.a.cfg.Now()
	w.s.failure = &podFailure{Reason: reasonEvicted, Message: why}
	w.s.terminal, w.s.endStart = v1.PodFailed, now
	w.event(v1.EventTypeWarning, reasonEvicted, strings.TrimSpace(why))
}
