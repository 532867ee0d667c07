package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// smallDisk mounts a small file system for a cluster's data directory.
func smallDisk(t *testing.T, mib int) string {
	t.Helper()
	dir := filepath.Join(suite.dir, "disk")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all that is left of a file system.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := int64(0)
	for step := int64(16 << 20); step >= 4096; {
		if err := syscall.Fallocate(int(f.Fd()), 0, size, step); errors.Is(err, syscall.ENOSPC) {
			step /= 2
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		size += step
	}
}

// TestFullDisk fills the disk of the data directory: writes are refused with words
// that name it, what runs runs on, and once there is room again everything goes on
// without a restart.
func TestFullDisk(t *testing.T) {
	c := newCluster("full")
	c.dataDir = filepath.Join(smallDisk(t, 640), "data")
	t.Cleanup(func() {
		if t.Failed() {
			var b strings.Builder
			c.dump(&b)
			t.Log(b.String())
		}
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	ns := c.namespace(t, "full")
	r := newRepo(t, c)
	r.add(ns, "shop")
	first := r.commit("first", shop{tag: "v1", message: "hello", replicas: 2}.files())
	r.deploy()
	pods := c.awaitPods(t, ns, "", "two are Ready", func(p []*corev1.Pod) bool { return len(p) == 2 && allReady(p) })
	workers := []int{c.processOf(t, " agent ", "--name worker-1"), c.processOf(t, " agent ", "--name worker-2")}

	filler := filepath.Join(filepath.Dir(c.dataDir), "filler")
	fill(t, filler)
	// names says whether a refusal is about the disk.
	names := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "no space") {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	_, err := c.k.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "refused"}}, metav1.CreateOptions{})
	names("a write to the API", err)
	if apierrors.ReasonForError(err) != "InsufficientStorage" {
		t.Errorf("its reason is %q", apierrors.ReasonForError(err))
	}
	second := r.commit("second", shop{tag: "v2", message: "changed", replicas: 2}.files())
	push := r.try("push", "gitk8s", "main")
	if push.code == 0 {
		t.Errorf("a push was taken: %s", push)
	}
	contains(t, push.stderr, "no space")
	_, err = c.pushImage("test/web:v4", "VERSION=v4")
	names("an image push", err)

	// A pod goes; its successor has no room.
	if err := c.k.CoreV1().Pods(ns).Delete(t.Context(), pods[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an event says why no pod starts", func() error {
		events, err := c.k.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, "no space left on the disk") {
				return nil
			}
		}
		return fmt.Errorf("%d events, none of which does", len(events.Items))
	})
	// What the cluster writes for its own upkeep goes on, many times over.
	leases := c.k.CoordinationV1().Leases(ns)
	lease, err := leases.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "beat"}}, metav1.CreateOptions{})
	for i := 0; err == nil && i < 1000; i++ {
		holder := strings.Repeat(fmt.Sprint(i%10), 2048)
		lease.Spec.HolderIdentity = &holder
		lease, err = leases.Update(t.Context(), lease, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatalf("upkeep on a full disk: %v", err)
	}
	now, err := c.k.CoreV1().Pods(ns).Get(t.Context(), pods[1].Name, metav1.GetOptions{})
	if err != nil || !ready(now) || lifeOf(now) != lifeOf(pods[1]) {
		t.Errorf("what ran was touched: %+v before, %+v now, %v", lifeOf(pods[1]), lifeOf(now), err)
	}
	c.answers(t, ns, "web", "msg=hello")
	c.deployed(t, ns, first)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.awaitPods(t, ns, "", "two are Ready again", func(p []*corev1.Pod) bool { return len(p) == 2 && allReady(p) })
	if _, err := c.pushImage("test/web:v4", "VERSION=v4"); err != nil {
		t.Error(err)
	}
	r.deploy()
	c.deployed(t, ns, second)
	c.answers(t, ns, "web", "msg=changed")
	for _, pid := range workers {
		if cmdline(pid) == "" {
			t.Errorf("worker %d is gone", pid)
		}
	}
	select {
	case <-c.up.done:
		t.Errorf("up ended: %v", c.up.err)
	default:
	}
}
