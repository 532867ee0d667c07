package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

const staticWeb = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: kube-system, labels: {app: web}}
spec: {terminationGracePeriodSeconds: 5, containers: [{name: main, image: "app:v1"}]}
`

func readStatic(t testing.TB, text string) *v1.Pod {
	t.Helper()
	pod, err := staticPod([]byte(text), "web.yaml", "node-1", apiserver.CompleteStaticPod)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestStaticPod(t *testing.T) {
	pod := readStatic(t, staticWeb)
	if pod.Name != "web-node-1" || pod.Namespace != "kube-system" || pod.Spec.NodeName != "node-1" || pod.Labels["app"] != "web" || len(pod.UID) != 32 ||
		pod.Annotations["kubernetes.io/config.source"] != "file" || pod.Annotations["kubernetes.io/config.hash"] != string(pod.UID) ||
		pod.Spec.RestartPolicy != v1.RestartPolicyAlways || !isStatic(pod) || isMirror(pod) || !critical(pod) || hasCriticalPriority(pod) {
		t.Errorf("%+v", pod)
	}
	if want := (v1.Toleration{Operator: "Exists", Effect: "NoExecute"}); len(pod.Spec.Tolerations) != 1 || pod.Spec.Tolerations[0] != want {
		t.Errorf("tolerations %+v", pod.Spec.Tolerations)
	}
	if again := readStatic(t, "# a remark\n"+staticWeb+"---\n"); again.UID != pod.UID {
		t.Error("the same content is another pod")
	}
	if other := readStatic(t, strings.Replace(staticWeb, "app:v1", "app:v2", 1)); other.UID == pod.UID {
		t.Error("other content is the same pod")
	}
	if p, err := staticPod([]byte(staticWeb), "web.yaml", "node-2", apiserver.CompleteStaticPod); err != nil || p.UID == pod.UID {
		t.Errorf("another node has the same pod: %v", err)
	}
	hostile := readStatic(t, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "uid": "../../etc", "deletionTimestamp": "2026-01-01T00:00:00Z",
		"finalizers": ["a/b"], "annotations": {"kubernetes.io/config.mirror": "1", "kubernetes.io/config.source": "api", "kubernetes.io/config.hash": "1"}},
		"spec": {"nodeName": "other", "priorityClassName": "system-node-critical", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Failed"}}`)
	if len(hostile.UID) != 32 || hostile.DeletionTimestamp != nil || len(hostile.Finalizers) > 0 || !isStatic(hostile) || hostile.Spec.NodeName != "node-1" ||
		hostile.Namespace != "default" || hostile.Status.Phase != v1.PodPending || !hasCriticalPriority(hostile) {
		t.Errorf("%+v", hostile)
	}
	m := mirrorOf(pod, "node-uid")
	if m.UID != "" || m.Annotations[v1.MirrorPodAnnotationKey] != string(pod.UID) || len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != "node-uid" ||
		!*m.OwnerReferences[0].Controller || isStatic(m) || pod.Annotations[v1.MirrorPodAnnotationKey] != "" {
		t.Errorf("mirror %+v", m)
	}
}

func TestStaticPodRefused(t *testing.T) {
	pod := func(spec string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {" + spec + "}}"
	}
	const c = "containers: [{name: c, image: i}]"
	for text, want := range map[string]string{
		"":                                  "the file holds 0 documents, and not one pod",
		"---\n# nothing\n":                  "the file holds 0 documents, and not one pod",
		pod(c) + "\n---\n" + pod(c):         "the file holds 2 documents, and not one pod",
		"{apiVersion: v1, kind: ConfigMap}": "the file holds a ConfigMap of v1, and not a Pod of v1",
		"{apiVersion: v1, kind: PodList, items: []}":          "the file holds a PodList of v1, and not a Pod of v1",
		"{kind: Pod, metadata: {name: x}}":                    "Object 'apiVersion' is missing",
		"just text":                                           "cannot unmarshal string",
		"\x00\x01":                                            "control characters are not allowed",
		"{apiVersion: v1, kind: Pod}":                         "name is needed for the pod",
		pod("containers: []"):                                 "spec.containers: Required value",
		strings.Replace(pod(c), "name: x", "name: x/../y", 1): "metadata.name: Invalid value",
		strings.Replace(pod(c), "name: x", "name: x, namespace: ../y", 1):                                        "metadata.namespace: Invalid value",
		pod(c + ", serviceAccountName: a"):                                                                       "static pods may not reference serviceaccounts",
		pod(c + ", imagePullSecrets: [{name: a}]"):                                                               "static pods may not reference secrets",
		pod(c + ", volumes: [{name: v, secret: {secretName: a}}]"):                                               "static pods may not reference secrets",
		pod(c + ", volumes: [{name: v, configMap: {name: a}}]"):                                                  "static pods may not reference configmaps",
		pod(c + ", volumes: [{name: v, persistentVolumeClaim: {claimName: a}}]"):                                 "static pods may not reference persistentvolumeclaims",
		pod(c + ", volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]"):              "static pods may not reference serviceaccounts (via projected volumes)",
		pod("containers: [{name: c, image: i, envFrom: [{configMapRef: {name: a}}]}]"):                           "static pods may not reference configmaps",
		pod("containers: [{name: c, image: i, env: [{name: E, valueFrom: {secretKeyRef: {name: a, key: k}}}]}]"): "static pods may not reference secrets",
	} {
		if _, err := staticPod([]byte(text), "f.yaml", "node-1", apiserver.CompleteStaticPod); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzStaticPod(f *testing.F) {
	f.Add([]byte(staticWeb))
	f.Add([]byte("a: &a [*a]\n---\n{}"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"volumes":[{"name":"v"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod, err := staticPod(data, "f.yaml", "node-1", apiserver.CompleteStaticPod)
		if err != nil {
			return
		}
		if strings.ContainsAny(pod.Namespace+pod.Name+string(pod.UID), "/\x00") || !isStatic(pod) || pod.Spec.NodeName != "node-1" {
			t.Errorf("%+v", pod)
		}
		for _, k := range references(pod) {
			t.Errorf("it refers to %+v", k)
		}
	})
}

func TestDecideMirror(t *testing.T) {
	pod, other := readStatic(t, staticWeb), readStatic(t, strings.Replace(staticWeb, "app:v1", "app:v2", 1))
	mirror := mirrorOf(pod, "n")
	leaving := mirror.DeepCopy()
	leaving.DeletionTimestamp = &metav1.Time{}
	for name, tt := range map[string]struct {
		pod    *v1.Pod
		ending bool
		mirror *v1.Pod
		want   mirrorVerb
	}{
		"nothing":            {nil, false, nil, keepMirror},
		"none yet":           {pod, false, nil, createMirror},
		"as it should be":    {pod, false, mirror, keepMirror},
		"of another content": {other, false, mirror, deleteMirror},
		"deleted":            {pod, false, leaving, deleteMirror},
		"of no pod":          {nil, false, mirror, deleteMirror},
		"the pod ends":       {pod, true, mirror, keepMirror},
		"ends without":       {pod, true, nil, keepMirror},
	} {
		if got := decideMirror(tt.pod, tt.ending, tt.mirror); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// TestStaticDir: what is read of a directory, and what is said of the rest.
func TestStaticDir(t *testing.T) {
	dir := t.TempDir()
	var said []string
	d := &staticDir{
		policy: StaticPodPolicy{Dir: dir, Complete: apiserver.CompleteStaticPod}, node: "node-1",
		complain: func(file string, err error) { said = append(said, fmt.Sprintf("%s: %v", file, err)) },
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func(what string, pods, complaints int) map[types.NamespacedName]*v1.Pod {
		t.Helper()
		said = nil
		got, ok := d.read()
		if !ok || len(got) != pods || len(said) != complaints {
			t.Errorf("%s: %v, %d pods, said %q", what, ok, len(got), said)
		}
		return got
	}
	write("web.yaml", staticWeb)
	write(".web.yaml", "hidden")
	write("web.yaml~", "an editor's")
	write("README", "text")
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("large.json", strings.Repeat(" ", staticFileLimit+1))
	look("all kinds of files", 1, 3)
	look("again nothing is said", 1, 0)
	write("x.yml", staticWeb)
	look("the same pod twice", 1, 1)
	if !strings.Contains(said[0], "x.yml: pod kube-system/web-node-1 is already in web.yaml") {
		t.Errorf("%q", said)
	}
	os.Remove(filepath.Join(dir, "x.yml"))
	write("web.yaml", "broken: [")
	got := look("spoilt", 1, 1)
	if p := got[types.NamespacedName{Namespace: "kube-system", Name: "web-node-1"}]; p == nil || p.Spec.Containers[0].Image != "app:v1" {
		t.Errorf("a spoilt file has ended what ran: %v", p)
	}
	write("web.yaml", strings.Replace(staticWeb, "app:v1", "app:v2", 1))
	look("well again", 1, 0)
	write("web.yaml", "broken: [")
	look("said anew", 1, 1)
	os.Remove(filepath.Join(dir, "web.yaml"))
	look("gone", 0, 0)
	d.policy.Dir = filepath.Join(dir, "later")
	look("no directory", 0, 0)
	d.policy.Dir = filepath.Join(dir, "large.json")
	if _, ok := d.read(); ok {
		t.Error("a file is no directory")
	}
}

// TestStaticPods against a real API server: the pod runs without it, its mirror comes,
// comes back and goes, and the containers are those of the file.
func TestStaticPods(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt := newFakeRuntime()
	n := newTestNode(t, plane, "node-1", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	dir := t.TempDir()
	n.cfg.StaticPods = StaticPodPolicy{Dir: dir, Complete: apiserver.CompleteStaticPod}
	file := filepath.Join(dir, "web.yaml")
	n.must(os.WriteFile(file, []byte(staticWeb), 0o600))
	n.ready()
	const ns, name = "kube-system", "web-node-1"
	uid := string(readStatic(t, staticWeb).UID)
	first := n.untilReady(ns, name)
	if id := first.Status.ContainerStatuses[0].ContainerID; id != containerIDPrefix+uid+"/main-0" || string(first.UID) == uid || len(first.Spec.Tolerations) != 1 ||
		first.Spec.ServiceAccountName != "" || len(first.Spec.Volumes) > 0 || first.Status.PodIP == "" || first.Status.QOSClass != v1.PodQOSBestEffort {
		t.Errorf("%+v", first)
	}
	if looks := n.agent.lookAtPods(context.Background()); len(looks) != 1 || looks[0].uid != string(first.UID) {
		t.Errorf("what it uses is told of %+v, and the API has %s", looks, first.UID)
	}
	n.deletePod(ns, name, 30)
	second := n.until(ns, name, "back and Ready", func(p *v1.Pod) bool { return podReady(p) && p.UID != first.UID })
	if second.Status.ContainerStatuses[0].ContainerID != first.Status.ContainerStatuses[0].ContainerID || len(rt.stopped) > 0 {
		t.Errorf("deleting the mirror has touched the container: %v", rt.stopped)
	}
	n.agent.worker(uid).post(func() { n.agent.worker(uid).evict("it is told to") })

	n.must(os.WriteFile(file, []byte(strings.Replace(staticWeb, "app:v1", "app:v2", 1)), 0o600))
	third := n.until(ns, name, "the new content", func(p *v1.Pod) bool { return podReady(p) && p.Spec.Containers[0].Image == "app:v2" })
	if rt.count() != 1 || third.Status.ContainerStatuses[0].ContainerID == first.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("%d sandboxes, status %+v", rt.count(), third.Status)
	}

	// A new agent finds the pod by its file.
	n.stop()
	n.ready()
	if p := n.untilReady(ns, name); p.UID != third.UID || p.Status.ContainerStatuses[0].ContainerID != third.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("after a restart of the agent: %+v", p.Status)
	}
	n.must(os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("kind: Pod"), 0o600))
	eventually(t, "an event names the bad file", func() bool {
		list, err := n.admin.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
		n.must(err)
		for _, e := range list.Items {
			if e.Reason == reasonInvalidStatic && e.InvolvedObject.Kind == "Node" && strings.Contains(e.Message, "bad.yaml") {
				return true
			}
		}
		return false
	})
	n.must(os.Remove(file))
	n.until(ns, name, "gone", gone)
	eventually(t, "nothing is left", func() bool { return rt.count() == 0 })
}

// A static pod that has ended is not run again by another agent.
func TestStaticPodEnded(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt := newFakeRuntime()
	n := newTestNode(t, plane, "node-1", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	n.cfg.StaticPods = StaticPodPolicy{Dir: t.TempDir(), Complete: apiserver.CompleteStaticPod}
	text := strings.Replace(staticWeb, "spec: {", "spec: {restartPolicy: Never, ", 1)
	n.must(os.WriteFile(filepath.Join(n.cfg.StaticPods.Dir, "web.yaml"), []byte(text), 0o600))
	n.ready()
	const ns, name = "kube-system", "web-node-1"
	n.untilReady(ns, name)
	rt.exit(string(readStatic(t, text).UID), "main-0", 3)
	failed := func(p *v1.Pod) bool { return p != nil && p.Status.Phase == v1.PodFailed }
	n.until(ns, name, "Failed", failed)
	eventually(t, "the sandbox is removed", func() bool { return rt.count() == 0 })
	n.stop()
	n.ready()
	n.deletePod(ns, name, 0)
	if p := n.until(ns, name, "Failed as before", failed); p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 3 || len(rt.configs("main-0")) != 1 {
		t.Errorf("%+v, %d starts", p.Status, len(rt.configs("main-0")))
	}
}

func TestStaticPolicy(t *testing.T) {
	p := StaticPodPolicy{Dir: "x"}
	if p.complete() == nil {
		t.Error("a directory without a way to complete pods is accepted")
	}
	p.Complete = func(*v1.Pod) error { return errors.New("no") }
	if err := p.complete(); err != nil || !filepath.IsAbs(p.Dir) {
		t.Errorf("%+v: %v", p, err)
	}
}
