package agent

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	reg "github.com/google/go-containerregistry/pkg/registry"
	imgv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/network"
)

const inOwnNetwork = "GITK8S_TEST_IN_OWN_NETWORK"

// TestNodeInOwnNetwork runs a whole node, with the real pod network and an image
// from a real registry, in a network namespace of its own: the test starts itself
// there.
func TestNodeInOwnNetwork(t *testing.T) {
	if os.Getenv(inOwnNetwork) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestNodeInOwnNetwork$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), inOwnNetwork+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestNodeInOwnNetwork")) {
			t.Fatalf("in its own network: %v\n%s", err, out)
		}
		return
	}
	nodeIP := netip.MustParseAddr(innerNodeIP)
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: nodeIP.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(reg.New(reg.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	image := strings.TrimPrefix(server.URL, "http://") + "/app:v1"

	plane := apiservertest.StartWith(t, nil)
	r := newRealNode(t, plane, "node-n")
	digest := pushImage(t, image, r.bin)
	store, err := registry.OpenStore(registry.StoreConfig{Dir: filepath.Join(r.cfg.DataDir, "images")})
	r.must(err)
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	pods := NewNodeNetwork(filepath.Join(r.cfg.DataDir, "network"), []netip.Addr{nodeIP}, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")})
	r.cfg.NodeIPs, r.cfg.Images, r.cfg.Network, r.cfg.PodCIDRAssigned = []netip.Addr{nodeIP}, store, pods, pods.Assign
	r.ready()
	ns := r.namespace("net")

	p := r.pod(ns, "web", func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.Image, c.Args = image, []string{"serve", ":8080"}
		c.Env = []v1.EnvVar{{Name: "VERSION", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
		c.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt(8080)}}}
	})
	p = r.untilReady(ns, "web")
	if !strings.HasPrefix(p.Status.PodIP, "10.42.7.") {
		t.Errorf("pod address %s is not in the node's podCIDR", p.Status.PodIP)
	}
	if id := p.Status.ContainerStatuses[0].ImageID; !strings.HasSuffix(id, "/app@"+digest) {
		t.Errorf("imageID %s, want …/app@%s", id, digest)
	}
	resp, err := http.Get(fmt.Sprintf("http://%s:8080/", p.Status.PodIP))
	r.must(err)
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "version "+p.Status.PodIP+"\n" {
		t.Errorf("the pod answers %q, %v", body, err)
	}
	r.pod(ns, "nope", func(p *v1.Pod) { p.Spec.Containers[0].Image = strings.Replace(image, ":v1", ":v9", 1) })
	r.until(ns, "nope", "ErrImagePull", func(p *v1.Pod) bool { return waitingReason(p) == reasonErrPull })

	ownUsersAcrossRestarts(t, r, ns, image)
	for _, name := range []string{"web", "nope", "users"} {
		r.deletePod(ns, name, 5)
		r.until(ns, name, "gone", gone)
	}
	links, err := netlink.LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("links left: %v, %v", links, err)
	}
}

// ownUsersAcrossRestarts: a pod keeps its users when its container starts again, also
// with another agent, and another pod has others.
func ownUsersAcrossRestarts(t *testing.T, r *realNode, ns, image string) {
	p := r.pod(ns, "users", func(p *v1.Pod) {
		p.Spec.HostUsers = new(bool)
		p.Spec.Containers[0].Image, p.Spec.Containers[0].Args = image, []string{"sleep"}
	})
	users := func(restarts int32) string {
		r.until(ns, "users", "it runs", func(p *v1.Pod) bool { return podReady(p) && p.Status.ContainerStatuses[0].RestartCount == restarts })
		list, err := r.driver.List(t.Context())
		r.must(err)
		for _, s := range list {
			for _, c := range s.Containers {
				if s.Config.ID == string(p.UID) && c.Pid != 0 {
					b, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", c.Pid))
					r.must(err)
					return strings.Join(strings.Fields(string(b)), " ")
				}
			}
		}
		return ""
	}
	kill := func() {
		list, err := r.driver.List(t.Context())
		r.must(err)
		for _, s := range list {
			for _, c := range s.Containers {
				if s.Config.ID == string(p.UID) && c.Pid != 0 {
					r.must(syscall.Kill(c.Pid, syscall.SIGKILL))
				}
			}
		}
	}
	first := users(0)
	if ip := netip.MustParseAddr(r.untilReady(ns, "users").Status.PodIP); first != fmt.Sprintf("0 %d 65536", network.UserBase(ip)) {
		t.Errorf("pod %s has the users %q", ip, first)
	}
	r.stop()
	r.must(r.driver.Close())
	r.open()
	pods := NewNodeNetwork(filepath.Join(r.cfg.DataDir, "network"), r.cfg.NodeIPs, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")})
	r.cfg.Network, r.cfg.PodCIDRAssigned = pods, pods.Assign
	r.ready()
	kill()
	if again := users(1); again != first {
		t.Errorf("with another agent it has the users %q, and had %q", again, first)
	}
}

// pushImage pushes an image with bin as its only program, and returns its digest.
func pushImage(t *testing.T, ref, bin string) string {
	t.Helper()
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "tmp/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/app", Mode: 0o755, Size: int64(len(data))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		img, err = mutate.Config(img, imgv1.Config{Entrypoint: []string{"app"}, Env: []string{"PATH=/bin"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}
