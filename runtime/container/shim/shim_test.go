package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// TestImports: every container pays for what this package imports.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range strings.Fields(string(out)) {
		for _, bad := range []string{"k8s.io/", "sigs.k8s.io/", "go.etcd.io/", "net/http", "google.golang.org/grpc"} {
			if name == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(name, bad) {
				t.Errorf("imports %s", name)
			}
		}
	}
}

// TestOverlayOfOlderKernels mounts by the option string, in a namespace of its own.
func TestOverlayOfOlderKernels(t *testing.T) {
	dir := t.TempDir()
	var layers []string
	for _, name := range []string{"lower", "upper-layer"} {
		l := filepath.Join(dir, strings.Repeat("x", 100)+name)
		if err := os.Mkdir(l, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(l, "f"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	for len(layers) < 100 {
		l := filepath.Join(dir, strings.Repeat("y", len(layers)))
		if err := os.Mkdir(l, 0o755); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	for _, d := range []string{"rootfs", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its mounts
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		if err == nil {
			err = overlayByOptions(filepath.Join(dir, "rootfs"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), layers)
		}
		var b []byte
		if err == nil {
			b, err = os.ReadFile(filepath.Join(dir, "rootfs", "f"))
		}
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(b)
	}()
	if s := <-got; s != "upper-layer" {
		t.Error(s)
	}
}

func TestCapabilitySet(t *testing.T) {
	available := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"}
	for _, c := range []struct {
		name string
		sec  container.Security
		want string
	}{
		{"default", container.Security{}, "CAP_CHOWN CAP_KILL CAP_NET_BIND_SERVICE"},
		{"drop one", container.Security{DropCapabilities: []string{"kill"}}, "CAP_CHOWN CAP_NET_BIND_SERVICE"},
		{"drop all, add one", container.Security{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}, "CAP_NET_ADMIN"},
		{"add all, drop one", container.Security{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CAP_KILL"}}, "CAP_CHOWN CAP_NET_ADMIN CAP_NET_BIND_SERVICE"},
		{"add what the machine lacks", container.Security{AddCapabilities: []string{"SYS_ADMIN"}}, "CAP_CHOWN CAP_KILL CAP_NET_BIND_SERVICE"},
		{"privileged", container.Security{Privileged: true, DropCapabilities: []string{"ALL"}}, "CAP_CHOWN CAP_KILL CAP_NET_ADMIN CAP_NET_BIND_SERVICE"},
	} {
		if got := strings.Join(capabilitySet(c.sec, available), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestMountList(t *testing.T) {
	cfg := container.ContainerConfig{Mounts: []container.Mount{
		{Target: "/data/deep", ReadOnly: true}, {Target: "/data"}, {Target: "/dev/shm", Propagation: "rslave"}, {Target: "/dev/"},
	}}
	mounts, _ := mountList(cfg, paths{mounts: []string{"m0", "m1", "m2", "m3"}, exe: "exe", shm: "shm"}, facts{recursiveRO: true})
	var got []string
	for _, m := range mounts {
		got = append(got, m.Destination+"="+m.Source)
	}
	want := []string{"/proc=proc", "/sys=sysfs", "/sys/fs/cgroup=cgroup", "/data=m1", "/dev=m3", "/data/deep=m0", "/dev/shm=m2", "/.gitk8s-init=exe"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if mounts[5].RecAttr == nil || mounts[4].RecAttr != nil {
		t.Error("read-only where it is not wanted, or the other way round")
	}
}
