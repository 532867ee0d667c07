package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/runtime/container"
)

// TestAgentWithFakeRuntime runs the agent against a real API server, with a runtime
// that can be told to fail.
func TestAgentWithFakeRuntime(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt, network := newFakeRuntime(), &fakeNetwork{}
	images := &fakePuller{config: defaultImage}
	n := newTestNode(t, plane, "node-a", rt, images, network)
	n.ready()

	t.Run("runs and removes a pod", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("run")
		p := n.pod(ns, "web", nil)
		p = n.untilReady(ns, "web")
		cs := p.Status.ContainerStatuses[0]
		if p.Status.Phase != v1.PodRunning || cs.State.Running == nil || !cs.Ready || cs.RestartCount != 0 {
			t.Errorf("status: %+v", p.Status)
		}
		if want := "registry.test/app:v1@sha256:1111111111111111111111111111111111111111111111111111111111111111"; cs.ImageID != want {
			t.Errorf("imageID %q, want %q", cs.ImageID, want)
		}
		if p.Status.PodIP == "" || p.Status.HostIP != "127.0.0.1" || p.Status.StartTime == nil || p.Status.QOSClass != v1.PodQOSBestEffort {
			t.Errorf("status: %+v", p.Status)
		}
		cfg := rt.configs("main-0")[0]
		if !slices.Equal(cfg.Args, []string{"/app", "serve"}) || !slices.Contains(cfg.Env, "COLOUR=image") {
			t.Errorf("args %q, env %q", cfg.Args, cfg.Env)
		}
		n.deletePod(ns, "web", 30)
		n.until(ns, "web", "gone", gone)
		eventually(t, "no sandbox", func() bool { return rt.count() == 0 && network.count() == 0 })
	})

	t.Run("restarts by policy", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("restart")
		p := n.pod(ns, "crash", nil)
		n.untilReady(ns, "crash")
		rt.exit(string(p.UID), "main-0", 3)
		got := n.until(ns, "crash", "restarted at once", func(p *v1.Pod) bool {
			return p.Status.ContainerStatuses[0].RestartCount == 1 && podReady(p)
		})
		if last := got.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" {
			t.Errorf("last state %+v", last)
		}
		rt.exit(string(p.UID), "main-1", 3)
		n.until(ns, "crash", "back-off", func(p *v1.Pod) bool { return waitingReason(p) == reasonCrashLoop })

		p = n.pod(ns, "job", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
		n.untilReady(ns, "job")
		rt.exit(string(p.UID), "main-0", 0)
		got = n.until(ns, "job", "Succeeded", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
		if c := findCondition(got.Status.Conditions, v1.PodReady); c.Status != v1.ConditionFalse || c.Reason != "PodCompleted" {
			t.Errorf("ready condition %+v", c)
		}
		n.deletePod(ns, "job", 0)
		n.deletePod(ns, "crash", 0)
	})

	t.Run("not created", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("create")
		rt.mu.Lock()
		rt.startErr = func(id string) error {
			return &container.StartError{Reason: "CreateContainerError", ExitCode: 128, Err: errors.New("no such user")}
		}
		rt.mu.Unlock()
		defer func() {
			rt.mu.Lock()
			defer rt.mu.Unlock()
			rt.startErr = nil
		}()
		p := n.pod(ns, "p", nil)
		got := n.until(ns, "p", "it says so", func(p *v1.Pod) bool { return waitingReason(p) == "CreateContainerError" })
		if st := got.Status.ContainerStatuses[0]; st.RestartCount != 0 || st.ContainerID != "" || st.State.Waiting.Message != "no such user" || got.Status.Phase != v1.PodPending {
			t.Errorf("status %+v", got.Status)
		}
		eventually(t, "the runtime keeps nothing of it", func() bool {
			rt.mu.Lock()
			defer rt.mu.Unlock()
			return len(rt.sandboxes[string(p.UID)].ctrs) == 0
		})
		n.deletePod(ns, "p", 0)
		n.until(ns, "p", "gone", gone)
	})

	t.Run("init containers in order", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("init")
		always := v1.ContainerRestartPolicyAlways
		p := n.pod(ns, "p", func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{
				{Name: "first", Image: "app:v1"},
				{Name: "side", Image: "app:v1", RestartPolicy: &always},
				{Name: "second", Image: "app:v1"},
			}
		})
		n.until(ns, "p", "first runs", func(p *v1.Pod) bool {
			return len(p.Status.InitContainerStatuses) == 3 && p.Status.InitContainerStatuses[0].State.Running != nil &&
				waitingReason(p) == reasonInitializing
		})
		rt.exit(string(p.UID), "first-0", 0)
		n.until(ns, "p", "second runs", func(p *v1.Pod) bool {
			return p.Status.InitContainerStatuses[1].State.Running != nil && p.Status.InitContainerStatuses[2].State.Running != nil
		})
		rt.exit(string(p.UID), "second-0", 0)
		n.untilReady(ns, "p")
		n.deletePod(ns, "p", 30)
		n.until(ns, "p", "gone", gone)
		rt.mu.Lock()
		defer rt.mu.Unlock()
		last := rt.stopped[len(rt.stopped)-2:]
		if last[0].id != "main-0" || last[1].id != "side-0" {
			t.Errorf("stopped %v, want main before its sidecar", last)
		}
	})

	t.Run("missing configuration appears", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("config")
		n.pod(ns, "p", func(p *v1.Pod) {
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "COLOUR", ValueFrom: &v1.EnvVarSource{
				ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "colours"}, Key: "wall"},
			}}}
		})
		n.until(ns, "p", "config error", func(p *v1.Pod) bool { return waitingReason(p) == reasonConfigError })
		_, err := n.admin.CoreV1().ConfigMaps(ns).Create(context.Background(), &v1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "colours"}, Data: map[string]string{"wall": "blue"},
		}, metav1.CreateOptions{})
		n.must(err)
		n.untilReady(ns, "p")
		cfgs := rt.configs("main-0")
		if env := cfgs[len(cfgs)-1].Env; !slices.Contains(env, "COLOUR=blue") {
			t.Errorf("env %q", env)
		}
		n.deletePod(ns, "p", 0)
	})

	t.Run("image errors", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("image")
		images.mu.Lock()
		images.absent = map[string]bool{"nope:v1": true}
		images.fail = func(ref string) error {
			if ref == "nope:v1" {
				return errors.New("not found: manifest unknown")
			}
			return nil
		}
		images.mu.Unlock()
		n.pod(ns, "p", func(p *v1.Pod) { p.Spec.Containers[0].Image = "nope:v1" })
		n.until(ns, "p", "ErrImagePull", func(p *v1.Pod) bool { return waitingReason(p) == reasonErrPull })
		n.until(ns, "p", "ImagePullBackOff", func(p *v1.Pod) bool { return waitingReason(p) == reasonPullBackoff })
		n.told(ns, v1.EventTypeWarning, "Failed", "Error: ErrImagePull")
		n.told(ns, v1.EventTypeNormal, "BackOff", `Back-off pulling image "nope:v1"`)
		n.told(ns, v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
		n.deletePod(ns, "p", 5)
		n.until(ns, "p", "gone", gone)
	})

	t.Run("stop signal and grace", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("stop")
		images.mu.Lock()
		images.config.StopSignal = "SIGQUIT"
		images.mu.Unlock()
		n.pod(ns, "p", func(p *v1.Pod) { p.Spec.Containers[0].Image = "quit:v1" })
		n.untilReady(ns, "p")
		n.deletePod(ns, "p", 17)
		n.until(ns, "p", "gone", gone)
		rt.mu.Lock()
		defer rt.mu.Unlock()
		s := rt.stopped[len(rt.stopped)-1]
		if s.signal != syscall.SIGQUIT || s.grace.Seconds() < 15 || s.grace.Seconds() > 17 {
			t.Errorf("stopped with %v after %s", s.signal, s.grace)
		}
	})

	t.Run("a lost sandbox is made again", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("lost")
		p := n.pod(ns, "p", nil)
		n.untilReady(ns, "p")
		rt.lose(string(p.UID))
		n.until(ns, "p", "running again", func(p *v1.Pod) bool {
			return p.Status.ContainerStatuses[0].RestartCount == 1 && podReady(p)
		})
		n.deletePod(ns, "p", 0)
	})

	t.Run("a container ends while the agent starts", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("ends")
		p := n.pod(ns, "ends", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
		n.untilReady(ns, "ends")
		n.root.stop()
		rt.listed = func() { rt.exit(string(p.UID), "main-0", 0) } // before the pods are known
		n.root.ready()
		rt.listed = nil
		n.until(ns, "ends", "ended", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded })
		n.deletePod(ns, "ends", 0)
	})

	t.Run("a restarted agent goes on", func(t *testing.T) {
		n := n.in(t)
		ns := n.namespace("again")
		p := n.pod(ns, "stays", nil)
		orphan := n.pod(ns, "orphan", nil)
		before := n.untilReady(ns, "stays")
		n.untilReady(ns, "orphan")
		root := n.root
		root.stop()
		for _, left := range []string{"pods/lost-uid/volumes/v", "logs/pods/ns_lost_lost-uid"} {
			n.must(os.MkdirAll(filepath.Join(root.cfg.DataDir, left), 0o755))
		}
		n.deletePod(ns, "orphan", 0)
		n.until(ns, "orphan", "gone", gone)
		started := len(rt.configs("main-0"))
		root.ready()
		eventually(t, "orphan removed", func() bool {
			rt.mu.Lock()
			defer rt.mu.Unlock()
			return rt.sandboxes[string(orphan.UID)] == nil
		})
		eventually(t, "directories of pods that are gone are removed", func() bool {
			pods, err := filepath.Glob(filepath.Join(root.cfg.DataDir, "pods", "lost-uid"))
			n.must(err)
			logs, err := filepath.Glob(filepath.Join(root.cfg.DataDir, "logs", "pods", "ns_lost_*"))
			n.must(err)
			return len(pods)+len(logs) == 0
		})
		rt.exit(string(p.UID), "main-0", 1)
		after := n.until(ns, "stays", "restarted once", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && podReady(p) })
		last := after.Status.ContainerStatuses[0].LastTerminationState.Terminated
		if last == nil || last.ContainerID != before.Status.ContainerStatuses[0].ContainerID {
			t.Errorf("last state %+v is not the run from before the restart", last)
		}
		if got := len(rt.configs("main-0")); got != started {
			t.Errorf("the restart started containers: %d, before %d", got, started)
		}
	})

	t.Run("StopAll", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := n.agent.StopAll(ctx); err != nil {
			t.Fatal(err)
		}
		if rt.count() != 0 || network.count() != 0 {
			t.Errorf("left: %d sandboxes, %d networks", rt.count(), network.count())
		}
	})
}

// What the worker says of its node is put on it, also on one that is there, and taken off
// when it is not said any more.
func TestNodeAnnotations(t *testing.T) {
	n := newTestNode(t, apiservertest.StartWith(t, nil), "node-n", newFakeRuntime(), &fakePuller{config: defaultImage}, &fakeNetwork{})
	for _, value := range []string{"one", "two", ""} {
		n.cfg.NodeAnnotations = map[string]string{"example.com/key": value}
		n.ready()
		node, err := n.admin.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
		n.must(err)
		got, there := node.Annotations["example.com/key"]
		if got != value || there != (value != "") || node.Annotations[annotationRoot] == "" {
			t.Errorf("want %q: %v", value, node.Annotations)
		}
		n.stop()
	}
}
