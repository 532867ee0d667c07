package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/component-helpers/storage/ephemeral"
	storage "k8s.io/component-helpers/storage/volume"

	"gitk8s.dev/gitk8s/runtime/volume"
)

// Names that the volume controller knows, too (docs/contracts.md).
const (
	// labelNode of a volume names the node that has its directory.
	labelNode = "gitk8s.dev/node"
	// annotationRoot of a Node is the directory in which its volumes are.
	annotationRoot = "gitk8s.dev/volume-root"
	// volumeProtection is a volume's finalizer while a claim has it.
	volumeProtection = "kubernetes.io/pv-protection"
)

// removeVolumeRetry is the time between attempts to remove a volume.
const removeVolumeRetry = 5 * time.Second

// localDir holds the local volumes of the node, which outlive pods.
func (a *Agent) localDir() string { return filepath.Join(a.cfg.DataDir, "volumes") }

// claimName is the claim that a pod's volume is of; empty if it is of none.
func claimName(pod *v1.Pod, v *v1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, v)
	}
	return ""
}

// volumeSources is what pods' volumes are made of.
type volumeSources struct {
	*objectCache
	*tokenCache
	a *Agent
}

// PersistentVolume implements volume.Sources.
func (s volumeSources) PersistentVolume(ctx context.Context, pod *v1.Pod, v *v1.Volume) (*v1.PersistentVolume, error) {
	name := claimName(pod, v)
	obj, err := s.get(ctx, objectKey{kindClaim, pod.Namespace, name})
	if err != nil {
		return nil, err
	}
	claim, _ := obj.(*v1.PersistentVolumeClaim)
	switch {
	case claim == nil:
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", name)
	case claim.DeletionTimestamp != nil:
		return nil, fmt.Errorf("PVC %s/%s is being deleted", pod.Namespace, name)
	case claim.Status.Phase != v1.ClaimBound || claim.Spec.VolumeName == "":
		return nil, fmt.Errorf("PVC %s/%s is not bound", pod.Namespace, name)
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return nil, err
		}
	}
	pv, err := s.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the volume of PVC %s/%s: %w", pod.Namespace, name, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.UID != claim.UID {
		return nil, fmt.Errorf("PV %s is not bound to PVC %s/%s", pv.Name, pod.Namespace, name)
	}
	if err := storage.CheckNodeAffinity(pv, s.a.node.labelsNow()); err != nil {
		return nil, fmt.Errorf("PV %s cannot be used on node %s: %w", pv.Name, s.a.cfg.NodeName, err)
	}
	return pv, nil
}

// volumeKeeper removes the directories of this node's volumes that are deleted, and
// then lets the volumes go.
type volumeKeeper struct {
	a    *Agent
	wake chan struct{}

	mu      sync.Mutex
	leaving map[string]*v1.PersistentVolume
}

func newVolumeKeeper(a *Agent) *volumeKeeper {
	return &volumeKeeper{a: a, wake: make(chan struct{}, 1), leaving: map[string]*v1.PersistentVolume{}}
}

// leaves says whether a volume waits for this node alone to let it go: not while a
// claim has it.
func leaves(pv *v1.PersistentVolume) bool {
	return pv.DeletionTimestamp != nil && slices.Contains(pv.Finalizers, volume.Provisioner) && !slices.Contains(pv.Finalizers, volumeProtection)
}

func (k *volumeKeeper) run(ctx context.Context) {
	api := k.a.cfg.Client.CoreV1().PersistentVolumes()
	mine := labelNode + "=" + k.a.cfg.NodeName
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		follow(ctx, "volumes", &v1.PersistentVolume{}, nil,
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.LabelSelector = mine
				return api.List(ctx, o)
			},
			func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.LabelSelector = mine
				return api.Watch(ctx, o)
			},
			sink{replace: k.replace, set: k.set, remove: k.remove}, nil)
	})
	for {
		var retry <-chan time.Time
		if !k.removeAll(ctx) {
			retry = time.After(removeVolumeRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-retry:
		}
	}
}

func (k *volumeKeeper) replace(list []any) {
	k.mu.Lock()
	k.leaving = map[string]*v1.PersistentVolume{}
	k.mu.Unlock()
	for _, obj := range list {
		k.set(obj)
	}
}

func (k *volumeKeeper) set(obj any) {
	pv := obj.(*v1.PersistentVolume)
	if !leaves(pv) {
		return
	}
	k.mu.Lock()
	k.leaving[pv.Name] = pv
	k.mu.Unlock()
	k.poke()
}

func (k *volumeKeeper) remove(obj any) {
	if pv, ok := obj.(*v1.PersistentVolume); ok {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.leaving, pv.Name)
	}
}

// poke looks at the leaving volumes again.
func (k *volumeKeeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// removeAll removes what can be removed, and says whether that was all.
func (k *volumeKeeper) removeAll(ctx context.Context) bool {
	k.mu.Lock()
	var all []*v1.PersistentVolume
	for _, pv := range k.leaving {
		all = append(all, pv)
	}
	k.mu.Unlock()
	done := true
	for _, pv := range all {
		err := k.removeOne(ctx, pv)
		if err == nil {
			k.remove(pv)
			continue
		}
		if ctx.Err() != nil {
			return true
		}
		done = false
		k.a.recorder.Event(pv, v1.EventTypeWarning, "VolumeFailedDelete", err.Error())
	}
	return done
}

func (k *volumeKeeper) removeOne(ctx context.Context, pv *v1.PersistentVolume) error {
	if local := pv.Spec.Local; local != nil && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete {
		// The pod may be gone from the API, by force, and not from here.
		used, err := k.a.volumes.InUse(local.Path)
		if err != nil {
			return err
		}
		if used {
			return fmt.Errorf("path %s is still used by a pod on this node", local.Path)
		}
		if err := k.a.volumes.RemoveLocal(local.Path); err != nil {
			return err
		}
		k.a.log.Info("removed the directory of a volume", "volume", pv.Name, "path", local.Path)
	}
	finalizers := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == volume.Provisioner })
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID, "resourceVersion": pv.ResourceVersion, "finalizers": finalizers}})
	if err != nil {
		return err
	}
	_, err = k.a.cfg.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // a newer version of it comes by watch
	}
	return err
}
