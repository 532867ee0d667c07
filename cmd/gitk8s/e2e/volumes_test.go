package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var volumesGVR = corev1.SchemeGroupVersion.WithResource("persistentvolumes")

// volumeOf waits until a claim is bound and returns its volume.
func (c *cluster) volumeOf(t *testing.T, ns, claim string) *corev1.PersistentVolume {
	t.Helper()
	pvc := await(t, c, claimsGVR, ns, claim, "it is bound", func(claim *corev1.PersistentVolumeClaim) bool { return claim.Status.Phase == corev1.ClaimBound })
	return await(t, c, volumesGVR, "", pvc.Spec.VolumeName, "it is bound", func(pv *corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeBound })
}

// gonePath fails if something is at a path of this machine.
func gonePath(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", path, err)
	}
}

func hasFile(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s has %q, %v; want %q", path, b, err, want)
	}
}

const oneContainer = `containers: [{name: c, image: "gitk8s.local/test/web:v1", volumeMounts: [{name: data, mountPath: /data}]}]`

// TestVolumes: data that outlives pods, and goes when nobody holds it any more.
func TestVolumes(t *testing.T) {
	t.Parallel()
	c := suite.shared
	t.Run("set", func(t *testing.T) { t.Parallel(); volumesOfSet(t, c) })
	t.Run("retain", func(t *testing.T) { t.Parallel(); volumeRetained(t, c) })
	t.Run("static", func(t *testing.T) { t.Parallel(); volumeStatic(t, c) })
	t.Run("local", func(t *testing.T) { t.Parallel(); volumeLocal(t, c) })
	t.Run("ephemeral", func(t *testing.T) { t.Parallel(); volumeEphemeral(t, c) })
}

func volumesOfSet(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes-set")
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}
  template:
    metadata: {labels: {app: db}}
    spec: {`+oneContainer+`}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}}]
`)
	before := c.running(t, ns, "app=db", "db-0=v1", "db-1=v1")
	first, second := c.volumeOf(t, ns, "data-db-0"), c.volumeOf(t, ns, "data-db-1")
	// How wide a column is depends on the volumes that others have.
	contains(t, strings.Join(strings.Fields(k.run(t, "get", "pv,pvc,sc")), " "),
		"NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS",
		"persistentvolume/"+first.Name+" 64Mi RWO Delete Bound volumes-set/data-db-0 local-path",
		"persistentvolumeclaim/data-db-1 Bound "+second.Name+" 64Mi RWO local-path",
		"storageclass.storage.k8s.io/local-path (default) gitk8s.dev/local-path Delete WaitForFirstConsumer false")

	k.run(t, "exec", "db-1", "--", "/server", "write", "/data/f", "kept")
	hasFile(t, filepath.Join(second.Spec.Local.Path, "f"), "kept")
	k.run(t, "delete", "pod", "db-1")
	after := c.awaitPod(t, ns, "db-1", "it is ready anew", func(p *corev1.Pod) bool { return p.UID != before[1].UID && ready(p) })
	if after.Spec.NodeName != before[1].Spec.NodeName {
		t.Errorf("the pod moved from %s to %s, away from its data", before[1].Spec.NodeName, after.Spec.NodeName)
	}
	if got := k.run(t, "exec", "db-1", "--", "/server", "cat", "/data/f"); got != "kept" {
		t.Errorf("the new pod reads %q", got)
	}
	contains(t, k.run(t, "describe", "pvc", "data-db-1"), "ProvisioningSucceeded", "Used By:       db-1", "Finalizers:    [kubernetes.io/pvc-protection]")

	k.run(t, "scale", "statefulset/db", "--replicas=1")
	awaitGone(t, c, claimsGVR, ns, "data-db-1")
	awaitGone(t, c, volumesGVR, "", second.Name)
	gonePath(t, second.Spec.Local.Path)

	k.run(t, "delete", "pvc", "data-db-0", "--wait=false")
	await(t, c, claimsGVR, ns, "data-db-0", "it is being deleted", func(claim *corev1.PersistentVolumeClaim) bool { return claim.DeletionTimestamp != nil })
	contains(t, k.run(t, "get", "pvc"), "data-db-0   Terminating   "+first.Name)
	k.run(t, "exec", "db-0", "--", "/server", "write", "/data/f", "still here")
	if pods := c.running(t, ns, "app=db", "db-0=v1"); pods[0].UID != before[0].UID {
		t.Error("the pod was replaced as its claim was deleted")
	}
	k.run(t, "delete", "statefulset", "db")
	awaitGone(t, c, claimsGVR, ns, "data-db-0")
	awaitGone(t, c, volumesGVR, "", first.Name)
	gonePath(t, first.Spec.Local.Path)
}

// volumeRetained: with Retain, neither the end of the claim nor that of the volume
// is the end of the data.
func volumeRetained(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes-retain")
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`)
	await(t, c, claimsGVR, ns, "data", "it waits", func(claim *corev1.PersistentVolumeClaim) bool {
		return claim.Status.Phase == corev1.ClaimPending && claim.Spec.StorageClassName != nil && *claim.Spec.StorageClassName == "local-path"
	})
	eventually(t, "the claim says what it waits for", func() error {
		if out := k.run(t, "describe", "pvc", "data"); !strings.Contains(out, "waiting for first consumer to be created before binding") {
			return errors.New(out)
		}
		return nil
	})
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {`+oneContainer+`, securityContext: {fsGroup: 4321}, volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}
`)
	c.awaitPod(t, ns, "p", "it is ready", ready)
	pv := c.volumeOf(t, ns, "data")
	t.Cleanup(func() { os.RemoveAll(pv.Spec.Local.Path) })
	k.run(t, "exec", "p", "--", "/server", "write", "/data/f", "precious")
	k.run(t, "patch", "pv", pv.Name, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	k.run(t, "delete", "pod/p", "pvc/data")
	await(t, c, volumesGVR, "", pv.Name, "it is Released", func(pv *corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeReleased })
	contains(t, k.run(t, "get", "pv", pv.Name), "Retain           Released   volumes-retain/data")
	hasFile(t, filepath.Join(pv.Spec.Local.Path, "f"), "precious")
	k.run(t, "delete", "pv", pv.Name)
	awaitGone(t, c, volumesGVR, "", pv.Name)
	hasFile(t, filepath.Join(pv.Spec.Local.Path, "f"), "precious")
}

// volumeStatic: a volume that an administrator made, and a claim that does not exist.
func volumeStatic(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes-static")
	k := kubectls(c)["own"].in(ns)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	const name = "volumes-static-hosts"
	t.Cleanup(func() { c.run("kubectl", "delete", "pv", name, "--ignore-not-found", "--wait=false") })
	c.apply(t, ns, `apiVersion: v1
kind: PersistentVolume
metadata: {name: `+name+`}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: manual
  hostPath: {path: "`+dir+`", type: Directory}
`)
	await(t, c, volumesGVR, "", name, "it is Available", func(pv *corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeAvailable })
	c.apply(t, ns, `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], storageClassName: manual, resources: {requests: {storage: 1Mi}}}
`)
	if pv := c.volumeOf(t, ns, "shared"); pv.Name != name {
		t.Errorf("bound to %s", pv.Name)
	}
	contains(t, k.run(t, "get", "pvc", "shared"), "shared   Bound    "+name+"   1Gi        RWX            manual")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  volumes: [{name: data, persistentVolumeClaim: {claimName: shared, readOnly: true}}]
  containers: [{name: c, image: "gitk8s.local/test/web:v1", volumeMounts: [{name: data, mountPath: /data, subPath: sub}]}]
`)
	c.awaitPod(t, ns, "p", "it is ready", ready)
	if got := k.run(t, "exec", "p", "--", "/server", "cat", "/data/f"); got != "from the host" {
		t.Errorf("the pod reads %q", got)
	}
	if r := k.try("", "exec", "p", "--", "/server", "write", "/data/g", "x"); r.code == 0 {
		t.Error("a claim's volume that is read-only was written to")
	}

	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: lost}
spec: {`+oneContainer+`, volumes: [{name: data, persistentVolumeClaim: {claimName: absent}}]}
`)
	eventually(t, "the pod says what it waits for", func() error {
		if out := k.run(t, "describe", "pod", "lost"); !strings.Contains(out, `persistentvolumeclaim "absent" not found`) {
			return errors.New(out)
		}
		return nil
	})
	// A pod that was given a node by its user is told by the node.
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: placed}
spec: {nodeName: worker-1, `+oneContainer+`, volumes: [{name: data, persistentVolumeClaim: {claimName: absent}}]}
`)
	eventually(t, "the node says what the pod waits for", func() error {
		if out := k.run(t, "describe", "pod", "placed"); !strings.Contains(out, "FailedMount") || !strings.Contains(out, `persistentvolumeclaim "absent" not found`) {
			return errors.New(out)
		}
		return nil
	})
	c.apply(t, ns, `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: many}
spec: {accessModes: [ReadWriteMany], storageClassName: local-path, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writers}
spec: {`+oneContainer+`, volumes: [{name: data, persistentVolumeClaim: {claimName: many}}]}
`)
	eventually(t, "the claim says why it gets no volume", func() error {
		if out := k.run(t, "describe", "pvc", "many"); !strings.Contains(out, "ProvisioningFailed") || !strings.Contains(out, "only supports the access modes ReadWriteOnce") {
			return errors.New(out)
		}
		return nil
	})
	if r := k.try("", "patch", "pvc", "shared", "-p", `{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}`); !strings.Contains(r.stderr, "must support resize") {
		t.Errorf("a claim of a class that cannot grow: %s", r)
	}
	k.run(t, "delete", "pod", "p")
	k.run(t, "delete", "pvc", "shared")
	await(t, c, volumesGVR, "", name, "it is Released", func(pv *corev1.PersistentVolume) bool { return pv.Status.Phase == corev1.VolumeReleased })
	hasFile(t, filepath.Join(dir, "sub", "f"), "from the host")
}

// volumeLocal: a directory of one node that an administrator made into a volume. The
// pod goes to that node, and the volume stays while a claim has it.
func volumeLocal(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes-local")
	k := kubectls(c)["own"].in(ns)
	dir := t.TempDir()
	const name = "volumes-local"
	t.Cleanup(func() { c.run("kubectl", "delete", "pv", name, "--ignore-not-found", "--wait=false") })
	c.apply(t, ns, `apiVersion: v1
kind: PersistentVolume
metadata: {name: `+name+`}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: by-hand
  local: {path: "`+dir+`"}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [worker-2]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: by-hand, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {terminationGracePeriodSeconds: 1, `+oneContainer+`, volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}
`)
	if p := c.awaitPod(t, ns, "p", "it is ready", ready); p.Spec.NodeName != "worker-2" {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
	k.run(t, "exec", "p", "--", "/server", "write", "/data/f", "kept")
	hasFile(t, filepath.Join(dir, "f"), "kept")
	contains(t, k.run(t, "get", "pvc", "data"), "data   Bound    "+name+"   5Gi        RWO            by-hand")
	k.run(t, "delete", "pv", name, "--wait=false")
	contains(t, k.run(t, "get", "pv", name), "Terminating")
	k.run(t, "exec", "p", "--", "/server", "cat", "/data/f")
	k.run(t, "delete", "pod/p", "pvc/data")
	awaitGone(t, c, volumesGVR, "", name)
	hasFile(t, filepath.Join(dir, "f"), "kept")
}

// volumeEphemeral: a claim that belongs to its pod.
func volumeEphemeral(t *testing.T, c *cluster) {
	ns := c.namespace(t, "volumes-ephemeral")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  `+oneContainer+`
  volumes: [{name: data, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}]
`)
	pod := c.awaitPod(t, ns, "p", "it is ready", ready)
	pv := c.volumeOf(t, ns, "p-data")
	claim, err := c.k.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "p-data", metav1.GetOptions{})
	if err != nil || !metav1.IsControlledBy(claim, pod) {
		t.Errorf("the claim belongs to %v: %v", claim.OwnerReferences, err)
	}
	c.kubectl(t, "-n", ns, "delete", "pod", "p")
	awaitGone(t, c, claimsGVR, ns, "p-data")
	awaitGone(t, c, volumesGVR, "", pv.Name)
	gonePath(t, pv.Spec.Local.Path)
	if want := fmt.Sprintf("_%s_p-data", ns); !strings.HasSuffix(pv.Spec.Local.Path, want) {
		t.Errorf("the directory is %s, not …%s", pv.Spec.Local.Path, want)
	}
}
