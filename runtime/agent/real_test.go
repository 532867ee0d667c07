package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	imgv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/volume"
)

// realNode is a node with real containers. Its image holds one static program.
type realNode struct {
	*testNode
	driver *driver.Driver
	state  string
	bin    string
}

var buildOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gitk8s-agent-test-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "testbin")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags=seccomp,netgo,osusergo",
		"-ldflags=-linkmode external -extldflags -static -s -w", "-o", bin, "./internal/testbin")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build testbin: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := buildOnce(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

func newRealNode(t testing.TB, plane *apiservertest.ControlPlane, name string) *realNode {
	t.Helper()
	bin, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer")
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(layer, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(bin, filepath.Join(layer, "bin", "app")); err != nil {
		t.Fatal(err)
	}
	r := &realNode{state: filepath.Join(dir, "run"), bin: bin}
	images := &fakePuller{layers: []string{layer}, config: imgv1.Config{Entrypoint: []string{"app"}, Env: []string{"PATH=/bin"}}}
	r.testNode = newTestNode(t, plane, name, nil, images, &netnsNetwork{dir: filepath.Join(dir, "netns")})
	r.cfg.CgroupParent = fmt.Sprintf("/gitk8s-agent-test-%d-%s", os.Getpid(), name)
	r.open()
	t.Cleanup(r.cleanUp)
	return r
}

func (r *realNode) open() {
	r.t.Helper()
	d, err := driver.New(driver.Config{StateDir: r.state, Executable: r.bin, Log: r.cfg.Logger})
	r.must(err)
	r.driver = d
	r.cfg.Runtime = d
}

// cleanUp removes what a failed test left.
func (r *realNode) cleanUp() {
	r.stop()
	list, err := r.driver.List(context.Background())
	if err != nil {
		r.t.Error(err)
	}
	for _, s := range list {
		if err := r.driver.RemoveSandbox(context.Background(), s.Config.ID); err != nil {
			r.t.Error(err)
		}
		if err := r.cfg.Network.Teardown(context.Background(), s.Config.ID); err != nil {
			r.t.Error(err)
		}
	}
	if err := r.driver.Close(); err != nil {
		r.t.Error(err)
	}
	if err := volume.UnmountBelow(r.cfg.DataDir); err != nil {
		r.t.Error(err)
	}
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + r.cfg.CgroupParent)
	if err != nil {
		r.t.Error(err)
	}
	for _, d := range append(dirs, "/sys/fs/cgroup"+r.cfg.CgroupParent) {
		if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
			r.t.Errorf("cgroup left: %v", err)
		}
	}
}

// netnsNetwork gives each pod a network namespace with nothing but loopback.
type netnsNetwork struct {
	mu  sync.Mutex
	dir string
}

func (n *netnsNetwork) Setup(_ context.Context, uid, _, _ string, _ bool) (string, []netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	path := filepath.Join(n.dir, uid)
	ips := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	if _, err := os.Stat(path); err == nil {
		return path, ips, nil
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", nil, err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}()
	}()
	return path, ips, <-done
}

func (n *netnsNetwork) Teardown(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	path := filepath.Join(n.dir, uid)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.ENOENT && err != unix.EINVAL {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (r *realNode) logs(ns, pod string, opts v1.PodLogOptions) string {
	r.t.Helper()
	data, err := r.admin.CoreV1().Pods(ns).GetLogs(pod, &opts).DoRaw(context.Background())
	r.must(err)
	return string(data)
}

// output runs a pod to its end and returns its log.
func (r *realNode) output(ns, name string, adjust func(*v1.Pod), args ...string) string {
	r.t.Helper()
	r.pod(ns, name, func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].Args = args
		if adjust != nil {
			adjust(p)
		}
	})
	p := r.until(ns, name, "ended", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed })
	if p.Status.Phase != v1.PodSucceeded {
		r.t.Errorf("pod %s failed: %+v", name, p.Status.ContainerStatuses)
	}
	return r.logs(ns, name, v1.PodLogOptions{})
}

func (r *realNode) exec(ns, pod string, command ...string) (stdout string, err error) {
	r.t.Helper()
	req := r.admin.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").
		VersionedParams(&v1.PodExecOptions{Container: "main", Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	ex, err := remotecommand.NewSPDYExecutor(r.config, http.MethodPost, req.URL())
	r.must(err)
	var out, errOut bytes.Buffer
	err = ex.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	return out.String() + errOut.String(), err
}

// TestAgentWithContainers runs real containers by a real API server.
func TestAgentWithContainers(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	r := newRealNode(t, plane, "node-r")
	r.ready()
	ns := r.namespace("real")

	t.Run("probes, logs, exec and stop", func(t *testing.T) { r.sub(t).testServe(ns) })
	t.Run("environment", func(t *testing.T) { r.sub(t).testEnvironment(ns) })
	t.Run("volumes", func(t *testing.T) { r.sub(t).testVolumes(ns) })
	t.Run("failures", func(t *testing.T) { r.sub(t).testFailures(ns) })
	t.Run("log options", func(t *testing.T) { r.sub(t).testLogs(ns) })
	t.Run("port-forward", func(t *testing.T) { r.sub(t).testPortForward(ns) })
	t.Run("restarted agent", func(t *testing.T) { r.testRestart(t, ns) })
	t.Run("StopAll", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := r.agent.StopAll(ctx); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(filepath.Join(r.cfg.DataDir, "pods"))
		if err != nil || len(left) != 0 {
			t.Errorf("left in pods: %v, %v", left, err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || bytes.Contains(mounts, []byte(r.cfg.DataDir)) {
			t.Errorf("mounts left below %s (%v)", r.cfg.DataDir, err)
		}
	})
}

func (r *realNode) sub(t *testing.T) *realNode {
	s := *r
	s.testNode = r.in(t)
	return &s
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (r *realNode) testServe(ns string) {
	port := freePort(r.t)
	httpGet := v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http")}}
	r.pod(ns, "web", func(p *v1.Pod) {
		p.Spec.HostNetwork = true
		c := &p.Spec.Containers[0]
		c.Args = []string{"serve", fmt.Sprintf("127.0.0.1:%d", port)}
		c.Env = []v1.EnvVar{{Name: "VERSION", Value: "1"}}
		c.Ports = []v1.ContainerPort{{Name: "http", ContainerPort: int32(port), HostPort: int32(port)}}
		c.StartupProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(port)}}, PeriodSeconds: 1}
		c.ReadinessProbe = &v1.Probe{ProbeHandler: httpGet, PeriodSeconds: 1}
		c.LivenessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"app", "files", "/bin/app2"}}}, PeriodSeconds: 1}
		c.Lifecycle = &v1.Lifecycle{
			PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"app", "write", "/tmp/post", "started"}}},
			PreStop:   &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"app", "write", "/tmp/pre", "stopping"}}},
		}
	})
	r.untilReady(ns, "web")
	if out := r.logs(ns, "web", v1.PodLogOptions{}); out != "listening\n" {
		r.t.Errorf("log %q", out)
	}
	if out, err := r.exec(ns, "web", "app", "files", "/tmp/post"); err != nil || out != "started" {
		r.t.Errorf("exec: %q, %v", out, err)
	}
	if out, err := r.exec(ns, "web", "app", "exists", "/nothing"); err == nil || !strings.Contains(err.Error(), "exit code 1") {
		r.t.Errorf("exec of a failing command: %q, %v", out, err)
	}
	if _, err := r.exec(ns, "web", "app", "write", "/tmp/sick", "yes"); err != nil {
		r.t.Fatal(err)
	}
	r.until(ns, "web", "not ready", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].State.Running != nil && !podReady(p) })

	stream, err := r.admin.CoreV1().Pods(ns).GetLogs("web", &v1.PodLogOptions{Follow: true}).Stream(context.Background())
	r.must(err)
	defer stream.Close()
	r.deletePod(ns, "web", 20)
	all, err := io.ReadAll(stream)
	if err != nil || string(all) != "listening\nbye\n" {
		r.t.Errorf("followed log %q, %v", all, err)
	}
	r.until(ns, "web", "gone", gone)
	eventually(r.t, "log directory removed", func() bool {
		left, err := filepath.Glob(filepath.Join(r.cfg.DataDir, "logs", "pods", ns+"_web_*"))
		return err == nil && len(left) == 0
	})
}

func (r *realNode) testEnvironment(ns string) {
	out := r.output(ns, "env", func(p *v1.Pod) {
		p.Labels = map[string]string{"app": "shop"}
		c := &p.Spec.Containers[0]
		c.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}
		c.Env = []v1.EnvVar{
			{Name: "A", Value: "1"},
			{Name: "B", Value: "$(A)-$(NOT)-$$(A)"},
			{Name: "POD", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "APP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "MEM", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
		}
	}, "env")
	for _, want := range []string{"A=1", "B=1-$(NOT)-$(A)", "POD=env", "APP=shop", "MEM=64", "KUBERNETES_SERVICE_HOST=10.43.0.1", "HOSTNAME=env"} {
		if !strings.Contains(out, want+"\n") {
			r.t.Errorf("environment lacks %s:\n%s", want, out)
		}
	}
	uid, gid, fs := int64(1000), int64(2000), int64(3000)
	out = r.output(ns, "id", func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &gid, FSGroup: &fs}
		p.Spec.Containers[0].WorkingDir = "/tmp"
	}, "id")
	if out != "1000 2000 [3000] /tmp id\n" && out != "1000 2000 [2000 3000] /tmp id\n" {
		r.t.Errorf("id: %q", out)
	}
	out = r.output(ns, "hosts", func(p *v1.Pod) {
		p.Spec.HostAliases = []v1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"db", "db.test"}}}
		p.Spec.DNSPolicy = v1.DNSNone
		p.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"10.9.9.9"}, Searches: []string{"x.test"}}
	}, "files", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
	for _, want := range []string{"127.0.0.1\thosts\n", "10.1.2.3\tdb\tdb.test\n", "hosts\n", "nameserver 10.9.9.9\n", "search x.test\n"} {
		if !strings.Contains(out, want) {
			r.t.Errorf("files lack %q:\n%s", want, out)
		}
	}
}

func (r *realNode) testVolumes(ns string) {
	ctx := context.Background()
	cm, err := r.admin.CoreV1().ConfigMaps(ns).Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}, Data: map[string]string{"key": "old"}}, metav1.CreateOptions{})
	r.must(err)
	_, err = r.admin.CoreV1().Secrets(ns).Create(ctx, &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"pw": []byte("hush")}}, metav1.CreateOptions{})
	r.must(err)
	mode := int32(0o400)
	host := r.t.TempDir()
	r.pod(ns, "vols", func(p *v1.Pod) {
		p.Labels = map[string]string{"app": "vols"}
		p.Spec.Volumes = []v1.Volume{
			{Name: "cm", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}},
			{Name: "all", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: &mode, Sources: []v1.VolumeProjection{
				{Secret: &v1.SecretProjection{LocalObjectReference: v1.LocalObjectReference{Name: "s"}}},
				{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "meta/labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
			}}}},
			{Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
			{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}}},
		}
		c := &p.Spec.Containers[0]
		c.Args = []string{"sleep"}
		c.VolumeMounts = []v1.VolumeMount{
			{Name: "cm", MountPath: "/cm"}, {Name: "cm", MountPath: "/one", SubPath: "key"},
			{Name: "all", MountPath: "/all"}, {Name: "mem", MountPath: "/mem"},
			{Name: "mem", MountPath: "/sub", SubPath: "a/b"}, {Name: "host", MountPath: "/host"},
		}
	})
	r.untilReady(ns, "vols")
	see := func(want string, command ...string) {
		r.t.Helper()
		if out, err := r.exec(ns, "vols", append([]string{"app"}, command...)...); err != nil || out != want {
			r.t.Errorf("%q: %q, %v; want %q", command, out, err, want)
		}
	}
	see("oldoldhush", "files", "/cm/key", "/one", "/all/pw")
	see("app=\"vols\"", "files", "/all/meta/labels")
	see("0400 0:0\n", "mode", "/all/pw")
	see("", "write", "/mem/f", "x")
	see("", "write", "/sub/g", "y")
	see("xy", "files", "/mem/f", "/mem/a/b/g")
	see("", "write", "/host/h", "z")
	if data, err := os.ReadFile(filepath.Join(host, "h")); err != nil || string(data) != "z" {
		r.t.Errorf("hostPath: %q, %v", data, err)
	}
	if out, err := r.exec(ns, "vols", "app", "write", "/cm/key", "no"); err == nil {
		r.t.Errorf("a configMap volume can be written: %s", out)
	}
	cm.Data["key"] = "new"
	_, err = r.admin.CoreV1().ConfigMaps(ns).Update(ctx, cm, metav1.UpdateOptions{})
	r.must(err)
	eventually(r.t, "the volume follows its ConfigMap", func() bool {
		out, err := r.exec(ns, "vols", "app", "files", "/cm/key")
		return err == nil && out == "new"
	})
	see("old", "files", "/one")
	r.deletePod(ns, "vols", 5)
	r.until(ns, "vols", "gone", gone)
	if _, err := os.Stat(filepath.Join(host, "h")); err != nil {
		r.t.Errorf("the hostPath's files are gone: %v", err)
	}
}

func (r *realNode) testFailures(ns string) {
	ended := func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }
	r.pod(ns, "fail", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].Args = []string{"fail", "3", "no", "luck"}
	})
	p := r.until(ns, "fail", "Failed", ended)
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 3 || s.Reason != "Error" || s.Message != "no luck" {
		r.t.Errorf("terminated %+v", s)
	}
	r.pod(ns, "oom", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].Args = []string{"eat"}
		p.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("32Mi")}
	})
	p = r.until(ns, "oom", "Failed", ended)
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 137 || s.Reason != "OOMKilled" {
		r.t.Errorf("terminated %+v", s)
	}
	r.pod(ns, "nobin", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].Command = []string{"/nothing"}
	})
	p = r.until(ns, "nobin", "Failed", ended)
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode == 0 || s.Message == "" {
		r.t.Errorf("terminated %+v", s)
	}
	r.pod(ns, "late", func(p *v1.Pod) {
		one := int64(1)
		p.Spec.ActiveDeadlineSeconds = &one
		p.Spec.Containers[0].Args = []string{"sleep"}
	})
	p = r.until(ns, "late", "Failed", ended)
	if p.Status.Reason != "DeadlineExceeded" {
		r.t.Errorf("reason %q", p.Status.Reason)
	}
	r.pod(ns, "live", func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.Args = []string{"sleep"}
		grace := int64(3)
		c.LivenessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"app", "exists", "/never"}}}, PeriodSeconds: 1, FailureThreshold: 1, TerminationGracePeriodSeconds: &grace}
	})
	r.until(ns, "live", "restarted by its liveness probe", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	if out := r.logs(ns, "live", v1.PodLogOptions{Previous: true}); out != "sleeping\n" {
		r.t.Errorf("previous log %q", out)
	}
	for _, name := range []string{"fail", "oom", "nobin", "late", "live"} {
		r.deletePod(ns, name, 1)
		r.until(ns, name, "gone", gone)
	}
}

func (r *realNode) testLogs(ns string) {
	if out := r.output(ns, "lines", nil, "lines", "1000"); !strings.HasSuffix(out, "line 998\nline 999\n") || strings.Count(out, "\n") != 1000 {
		r.t.Errorf("log of %d lines", strings.Count(out, "\n"))
	}
	tail, limit := int64(3), int64(10)
	if out := r.logs(ns, "lines", v1.PodLogOptions{TailLines: &tail}); out != "line 997\nline 998\nline 999\n" {
		r.t.Errorf("tail %q", out)
	}
	if out := r.logs(ns, "lines", v1.PodLogOptions{LimitBytes: &limit}); out != "line 0\nlin" {
		r.t.Errorf("limited %q", out)
	}
	out := r.logs(ns, "lines", v1.PodLogOptions{TailLines: &tail, Timestamps: true})
	stamp, _, _ := strings.Cut(out, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
		r.t.Errorf("timestamp %q: %v", stamp, err)
	}
	later := metav1.NewTime(time.Now().Add(time.Hour))
	if out := r.logs(ns, "lines", v1.PodLogOptions{SinceTime: &later}); out != "" {
		r.t.Errorf("log of the future %q", out)
	}
}

func (r *realNode) testPortForward(ns string) {
	r.pod(ns, "pf", func(p *v1.Pod) {
		p.Spec.Containers[0].Args = []string{"serve", "127.0.0.1:8080"}
		p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "VERSION", Value: "7"}}
	})
	r.untilReady(ns, "pf")
	// client-go ends a port-forward at the first connection that is refused.
	eventually(r.t, "the program listens", func() bool { return r.logs(ns, "pf", v1.PodLogOptions{}) == "listening\n" })
	transport, upgrader, err := spdy.RoundTripperFor(r.config)
	r.must(err)
	u := r.admin.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name("pf").SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	stop, ready := make(chan struct{}), make(chan struct{})
	fw, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	r.must(err)
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		r.t.Fatal(err)
	case <-time.After(waitLimit):
		r.t.Fatal("port-forward is not ready")
	}
	ports, err := fw.GetPorts()
	r.must(err)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
	r.must(err)
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "version 7\n" {
		r.t.Errorf("through the port-forward: %q, %v", body, err)
	}
	close(stop)
	<-done
	r.deletePod(ns, "pf", 5)
	r.until(ns, "pf", "gone", gone)
}

func (r *realNode) testRestart(t *testing.T, ns string) {
	s := r.sub(t)
	s.pod(ns, "stays", func(p *v1.Pod) { p.Spec.Containers[0].Args = []string{"sleep"} })
	before := s.untilReady(ns, "stays")
	r.stop()
	if err := r.driver.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.ready()
	s = r.sub(t)
	if out, err := s.exec(ns, "stays", "app", "print", "still here"); err != nil || out != "still here\n" {
		t.Errorf("exec after the restart: %q, %v", out, err)
	}
	after, err := s.admin.CoreV1().Pods(ns).Get(context.Background(), "stays", metav1.GetOptions{})
	s.must(err)
	a, b := after.Status.ContainerStatuses[0], before.Status.ContainerStatuses[0]
	if a.RestartCount != 0 || a.ContainerID != b.ContainerID || !a.Ready || !a.State.Running.StartedAt.Equal(&b.State.Running.StartedAt) {
		t.Errorf("status after the restart %+v, before %+v", a, b)
	}
}
