package volume

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func claimPod(uid string, names ...string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: "p"}}
	for _, name := range names {
		pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: name, VolumeSource: v1.VolumeSource{
			PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	return pod
}

func localVolume(path string, ours bool) *v1.PersistentVolume {
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	pv.Spec.Local = &v1.LocalVolumeSource{Path: path}
	if ours {
		pv.Annotations = map[string]string{provisionedBy: Provisioner}
	}
	return pv
}

func TestClaims(t *testing.T) {
	dir := t.TempDir()
	local := filepath.Join(dir, "local")
	hostPath := &v1.PersistentVolume{}
	hostPath.Spec.HostPath = &v1.HostPathVolumeSource{Path: filepath.Join(dir, "host"), Type: ptr.To(v1.HostPathDirectoryOrCreate)}
	device := localVolume(dir, false)
	device.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	src := fakeSources{
		"pv/ours": localVolume(filepath.Join(local, "pvc-1"), true), "pv/host": hostPath, "pv/static": localVolume(dir, false),
		"pv/missing": localVolume(filepath.Join(dir, "absent"), false), "pv/file": localVolume(filepath.Join(dir, "file"), false),
		"pv/outside": localVolume(filepath.Join(dir, "elsewhere"), true), "pv/back": localVolume(local+"/../x", true),
		"pv/nested": localVolume(filepath.Join(local, "a", "b"), true), "pv/root": localVolume(local, true), "pv/device": device,
		"pv/nfs": &v1.PersistentVolume{},
	}
	m := NewManager(filepath.Join(dir, "pods"), local, src, nil)
	pod := claimPod("u", "ours", "host", "static")
	for range 2 {
		if err := m.SetUp(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"ours": filepath.Join(local, "pvc-1"), "host": filepath.Join(dir, "host"), "static": dir} {
		if got, err := m.Path(pod, name); err != nil || got != want {
			t.Errorf("%s is in %s, %v", name, got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(local, "pvc-1")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the directory is %v, %v", info, err)
	}
	data := filepath.Join(local, "pvc-1", "data")
	if err := os.WriteFile(data, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if used, err := m.InUse(filepath.Join(local, "pvc-1")); err != nil || !used {
		t.Errorf("in use: %v, %v", used, err)
	}
	delete(src, "pv/ours") // what is set up needs no API
	if err := m.SetUp(t.Context(), pod); err != nil {
		t.Error(err)
	}
	if err := m.TearDown("u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(data); err != nil {
		t.Errorf("the data went with the pod: %v", err)
	}
	if used, err := m.InUse(filepath.Join(local, "pvc-1")); err != nil || used {
		t.Errorf("in use after the pod: %v, %v", used, err)
	}

	for name, want := range map[string]string{
		"missing": "does not exist", "file": "is not a directory", "device": "block device", "nfs": "not supported", "unbound": "not bound",
		"outside": "is not in", "back": "is not in", "nested": "is not in", "root": "is not in",
	} {
		if err := m.SetUp(t.Context(), claimPod("u2", name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	for _, path := range []string{"elsewhere", "x"} {
		if _, err := os.Lstat(filepath.Join(dir, path)); err == nil {
			t.Errorf("%s was made outside of the volumes", path)
		}
	}
}

// TestRemoveLocal: a volume goes with all that is in it, and nothing besides.
func TestRemoveLocal(t *testing.T) {
	dir := t.TempDir()
	local, precious := filepath.Join(dir, "local"), filepath.Join(dir, "precious")
	m := NewManager(filepath.Join(dir, "pods"), local, fakeSources{}, nil)
	for _, d := range []string{filepath.Join(local, "v", "deep"), precious} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{
		local, dir, "/", "", "v", precious, local + "/../precious", filepath.Join(local, "v", "deep"), local + "/v/..", local + "/..", local + "//v", local + "/v/",
	} {
		if err := m.RemoveLocal(path); err == nil {
			t.Errorf("%q was removed", path)
		}
	}
	for link, target := range map[string]string{filepath.Join(local, "link"): precious, filepath.Join(local, "v", "link"): precious} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 {
		// What a container has mounted into its volume is not part of it.
		mounted := filepath.Join(local, "v", "mounted")
		if err := os.Mkdir(mounted, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(precious, mounted, "", unix.MS_BIND, ""); err != nil {
			t.Logf("no mount inside: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	}
	for _, name := range []string{"v", "link", "absent"} {
		if err := m.RemoveLocal(filepath.Join(local, name)); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(local, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(precious, "f")); err != nil {
		t.Errorf("something outside of the volume was removed: %v", err)
	}
}

func TestLocalVolumeOfGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	dir := t.TempDir()
	local := filepath.Join(dir, "local")
	path, outside := filepath.Join(local, "v"), filepath.Join(dir, "outside")
	if err := os.MkdirAll(filepath.Join(path, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(path, "sub", "f"), outside} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	m := NewManager(filepath.Join(dir, "pods"), local, fakeSources{"pv/v": localVolume(path, true)}, nil)
	pod := claimPod("u", "v")
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: ptr.To(int64(4321))}
	if err := m.SetUp(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o775 | fs.ModeDir | fs.ModeSetgid, "sub": 0o775 | fs.ModeDir | fs.ModeSetgid, "sub/f": 0o660} {
		info, err := os.Stat(filepath.Join(path, name))
		if err != nil || info.Mode() != want || info.Sys().(*syscall.Stat_t).Gid != 4321 {
			t.Errorf("%q is %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
	if info, err := os.Stat(outside); err != nil || info.Sys().(*syscall.Stat_t).Gid == 4321 || info.Mode() != 0o600 {
		t.Errorf("a link was followed out of the volume: %v, %v", info, err)
	}
}
