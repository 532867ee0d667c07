package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestWorker goes through what a worker does for a pod, one feature after the
// other, as `kubectl` shows it.
func TestWorker(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "worker")
	for name, f := range map[string]func(*testing.T, *cluster, string){
		"init":          initContainers,
		"environment":   environment,
		"volumes":       liveVolumes,
		"host path":     hostPath,
		"liveness":      liveness,
		"readiness":     readiness,
		"startup":       startup,
		"probe kinds":   probeKinds,
		"out of memory": outOfMemory,
		"back-off":      crashLoop,
		"policy":        restartPolicies,
		"graceful stop": gracefulStop,
		"zombies":       zombies,
		"across nodes":  acrossNodes,
		"taints":        taints,
		"resources":     tooLarge,
		"host ports":    hostPorts,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, c, ns)
		})
	}
}

const testImage = "gitk8s.local/test/web:v1"

// containerStatus is the status of a pod's container, empty if there is none yet.
func containerStatus(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

func succeeded(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded }

// inPod runs the test program in a pod's container.
func (c *cluster) inPod(t *testing.T, ns, pod string, args ...string) string {
	t.Helper()
	return c.kubectl(t, append([]string{"exec", "-n", ns, pod, "--", "/server"}, args...)...)
}

// cat waits until a file in a pod has the wanted content.
func (c *cluster) cat(t *testing.T, ns, pod, file, want string) {
	t.Helper()
	eventually(t, pod+": "+file, func() error {
		r := c.run("kubectl", "exec", "-n", ns, pod, "--", "/server", "cat", file)
		if r.code != 0 || r.stdout != want {
			return fmt.Errorf("it should be %q: %s", want, r)
		}
		return nil
	})
}

// initContainers run in order, each to its end, before the others; a sidecar runs
// beside them.
func initContainers(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: init}
spec:
  initContainers:
  - {name: one, image: "`+testImage+`", args: [write, /shared/file, from-one], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: beside, image: "`+testImage+`", restartPolicy: Always, env: [{name: PORT, value: "9000"}],
     startupProbe: {httpGet: {path: /readyz, port: 9000}, periodSeconds: 1}}
  - {name: two, image: "`+testImage+`", args: [fetch, "http://localhost:9000/"]}
  containers:
  - {name: main, image: "`+testImage+`", args: [cat, /shared/file], volumeMounts: [{name: shared, mountPath: /shared}]}
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}]
`)
	p := c.awaitPod(t, ns, "init", "it has succeeded", succeeded)
	one, two, main := containerStatus(p, "one").State.Terminated, containerStatus(p, "two").State.Terminated, containerStatus(p, "main").State.Terminated
	if one == nil || two == nil || main == nil || one.FinishedAt.After(two.StartedAt.Time) || two.FinishedAt.After(main.StartedAt.Time) {
		t.Errorf("not one after the other: %+v, %+v, %+v", one, two, main)
	}
	if got := c.kubectl(t, "logs", "-n", ns, "init", "-c", "main"); got != "from-one\n" {
		t.Errorf("the main container read %q", got)
	}
	contains(t, c.kubectl(t, "logs", "-n", ns, "init", "-c", "two"), "v1 from init")
}

// environment has every source that a variable can come from.
func environment(t *testing.T, c *cluster, ns string) {
	c.kubectl(t, "create", "configmap", "env", "-n", ns, "--from-literal=FROM_MAP=map", "--from-literal=other=two")
	c.kubectl(t, "create", "secret", "generic", "env", "-n", ns, "--from-literal=FROM_SECRET=hush")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: env, labels: {tier: front}, annotations: {note: a note}}
spec:
  nodeName: worker-1
  restartPolicy: Never
  containers:
  - name: main
    image: "`+testImage+`"
    command: [/server, args]
    args: ["$(GREETING)", "$(FROM_KEY)", "$$(GREETING)", "$(UNKNOWN)", "$(NAME)/$(NAMESPACE)/$(LABEL)/$(NOTE)", "$(NODE)", "$(CPU)", "$(MEMORY)", "$(FROM_MAP)", "$(pre_FROM_SECRET)"]
    resources: {limits: {cpu: 250m, memory: 64Mi}}
    envFrom: [{configMapRef: {name: env}}, {prefix: pre_, secretRef: {name: env}}, {configMapRef: {name: absent, optional: true}}]
    env:
    - {name: WHO, value: world}
    - {name: GREETING, value: "hello $(WHO)"}
    - {name: FROM_KEY, valueFrom: {configMapKeyRef: {name: env, key: other}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
`)
	c.awaitPod(t, ns, "env", "it has succeeded", succeeded)
	want := "hello world|two|$(GREETING)|$(UNKNOWN)|env/" + ns + "/front/a note|worker-1|250|67108864|map|hush\n"
	if got := c.kubectl(t, "logs", "-n", ns, "env"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: env-absent}
spec:
  containers: [{name: main, image: "`+testImage+`", envFrom: [{configMapRef: {name: late}}]}]
`)
	c.awaitPod(t, ns, "env-absent", "it says what is missing", func(p *corev1.Pod) bool {
		w := containerStatus(p, "main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, `configmap "late" not found`)
	})
	c.kubectl(t, "create", "configmap", "late", "-n", ns)
	c.awaitPod(t, ns, "env-absent", "it runs once that is there", ready)
}

// liveVolumes are made of objects and follow them while the container runs.
func liveVolumes(t *testing.T, c *cluster, ns string) {
	c.kubectl(t, "create", "configmap", "vol", "-n", ns, "--from-literal=a=one", "--from-literal=b=fixed")
	c.kubectl(t, "create", "secret", "generic", "vol", "-n", ns, "--from-literal=key=first")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: vol, labels: {tier: front}}
spec:
  containers:
  - name: main
    image: "`+testImage+`"
    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: map, mountPath: /map}
    - {name: map, mountPath: /sub/b, subPath: b}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: pod, mountPath: /pod}
    - {name: all, mountPath: /all}
    - {name: memory, mountPath: /memory}
  volumes:
  - {name: map, configMap: {name: vol}}
  - {name: secret, secret: {secretName: vol, defaultMode: 0400, items: [{key: key, path: deep/key}]}}
  - name: pod
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}]}
  - name: all
    projected: {sources: [{configMap: {name: vol, items: [{key: b, path: from-map}]}}, {secret: {name: vol}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
`)
	c.awaitPod(t, ns, "vol", "it is Ready", ready)
	for file, want := range map[string]string{
		"/map/a": "one", "/map/b": "fixed", "/sub/b": "fixed", "/secret/deep/key": "first",
		"/pod/labels": `tier="front"`, "/pod/memory": "64", "/all/from-map": "fixed", "/all/key": "first", "/all/name": "vol",
	} {
		if got := c.inPod(t, ns, "vol", "cat", file); got != want {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
	c.inPod(t, ns, "vol", "fill", "/memory/fits", "512")
	if r := c.run("kubectl", "exec", "-n", ns, "vol", "--", "/server", "fill", "/memory/big", "2048"); r.code == 0 || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("2 MiB in a memory volume of 1 MiB: %s", r)
	}
	c.kubectl(t, "patch", "configmap", "vol", "-n", ns, "-p", `{"data":{"a":"two","b":"changed"}}`)
	c.kubectl(t, "patch", "secret", "vol", "-n", ns, "-p", `{"stringData":{"key":"second"}}`)
	c.kubectl(t, "label", "pod", "vol", "-n", ns, "tier=back", "--overwrite")
	c.cat(t, ns, "vol", "/map/a", "two")
	c.cat(t, ns, "vol", "/secret/deep/key", "second")
	c.cat(t, ns, "vol", "/pod/labels", `tier="back"`)
	c.cat(t, ns, "vol", "/all/from-map", "changed")
	c.cat(t, ns, "vol", "/all/key", "second")
	// Documented: "A container using a ConfigMap as a subPath volume mount will not
	// receive ConfigMap updates."
	if got := c.inPod(t, ns, "vol", "cat", "/sub/b"); got != "fixed" {
		t.Errorf("a subPath mount should keep %q, has %q", "fixed", got)
	}
	if p := c.awaitPod(t, ns, "vol", "it is Ready", ready); containerStatus(p, "main").RestartCount != 0 {
		t.Error("an update of a volume restarted the container")
	}
}

func hostPath(t *testing.T, c *cluster, ns string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte("by the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  restartPolicy: Never
  initContainers: [{name: w, image: %[1]q, args: [write, /host/new/file, written], volumeMounts: [{name: new, mountPath: /host/new}]}]
  containers: [{name: r, image: %[1]q, args: [cat, /host/given], volumeMounts: [{name: dir, mountPath: /host, readOnly: true}]}]
  volumes:
  - {name: dir, hostPath: {path: %[2]q, type: Directory}}
  - {name: new, hostPath: {path: %[3]q, type: DirectoryOrCreate}}
`, testImage, dir, filepath.Join(dir, "new")))
	c.awaitPod(t, ns, "host", "it has succeeded", succeeded)
	if got := c.kubectl(t, "logs", "-n", ns, "host", "-c", "r"); got != "by the host\n" {
		t.Errorf("the container read %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new", "file")); string(b) != "written" {
		t.Errorf("the host reads %q %v", b, err)
	}
}

// liveness restarts a container; without probes a running one is healthy.
func liveness(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "`+testImage+`", livenessProbe: {httpGet: {path: /livez, port: 8080}, periodSeconds: 1, failureThreshold: 2}}
  - {name: plain, image: "`+testImage+`", env: [{name: PORT, value: "9000"}]}
`)
	c.awaitPod(t, ns, "live", "it is Ready", ready)
	c.inPod(t, ns, "live", "write", "/dead", "")
	p := c.awaitPod(t, ns, "live", "its container was restarted", func(p *corev1.Pod) bool {
		return containerStatus(p, "main").RestartCount == 1 && ready(p)
	})
	if containerStatus(p, "plain").RestartCount != 0 {
		t.Error("the other container was restarted too")
	}
	contains(t, c.kubectl(t, "describe", "pod", "live", "-n", ns), "Liveness probe failed: HTTP probe failed with statuscode: 503",
		"Container main failed liveness probe, will be restarted")
	contains(t, c.kubectl(t, "logs", "-n", ns, "live", "-c", "main", "--previous"), "listening v1", "stopped")
}

// readiness takes a pod out of its Service and never restarts it.
func readiness(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: readiness, labels: {app: readiness}}
spec:
  containers:
  - {name: main, image: "`+testImage+`", readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: readiness}
spec: {selector: {app: readiness}, ports: [{port: 80, targetPort: 8080}]}
`)
	endpoints := corev1.SchemeGroupVersion.WithResource("endpoints")
	ready1 := func(n int) func(*corev1.Endpoints) bool { //nolint:staticcheck // what kubectl get endpoints shows
		return func(e *corev1.Endpoints) bool {
			ready, not := 0, 0
			for _, s := range e.Subsets {
				ready, not = ready+len(s.Addresses), not+len(s.NotReadyAddresses)
			}
			return ready == n && not == 1-n
		}
	}
	await(t, c, endpoints, ns, "readiness", "it has the pod", ready1(1))
	c.inPod(t, ns, "readiness", "write", "/unready", "")
	await(t, c, endpoints, ns, "readiness", "the pod is out", ready1(0))
	c.inPod(t, ns, "readiness", "remove", "/unready")
	await(t, c, endpoints, ns, "readiness", "the pod is back", ready1(1))
	if p := c.awaitPod(t, ns, "readiness", "it is Ready", ready); containerStatus(p, "main").RestartCount != 0 {
		t.Error("a readiness probe restarted the container")
	}
}

// startup holds the other probes back until it has succeeded once.
func startup(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: startup}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: "`+testImage+`"
    startupProbe: {exec: {command: [/server, exists, /open]}, periodSeconds: 1, failureThreshold: 60}
    livenessProbe: {exec: {command: [/server, exists, /open]}, periodSeconds: 1, failureThreshold: 1}
`)
	c.awaitPod(t, ns, "startup", "it runs and has not started", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.State.Running != nil && s.Started != nil && !*s.Started && !s.Ready
	})
	eventually(t, "the startup probe should fail at first", func() error {
		r := c.run("kubectl", "describe", "pod", "startup", "-n", ns)
		if !strings.Contains(r.stdout, "Startup probe failed") {
			return fmt.Errorf("no event yet")
		}
		return nil
	})
	c.inPod(t, ns, "startup", "write", "/open", "")
	p := c.awaitPod(t, ns, "startup", "it is Ready", ready)
	if containerStatus(p, "main").RestartCount != 0 {
		t.Error("the liveness probe ran before the startup probe had succeeded")
	}
	c.inPod(t, ns, "startup", "remove", "/open")
	c.awaitPod(t, ns, "startup", "the liveness probe restarts it", func(p *corev1.Pod) bool {
		return containerStatus(p, "main").RestartCount == 1
	})
}

// probeKinds has a readiness probe of each kind.
func probeKinds(t *testing.T, c *cluster, ns string) {
	kinds := map[string]string{
		"exec": "exec: {command: [/server, exists, /server]}",
		"http": "httpGet: {path: /header, port: web, httpHeaders: [{name: X-Probe, value: a}]}",
		"tcp":  "tcpSocket: {port: 8080}",
		"grpc": "grpc: {port: 9090, service: shop}",
	}
	var manifests []string
	for kind, probe := range kinds {
		manifests = append(manifests, `apiVersion: v1
kind: Pod
metadata: {name: probe-`+kind+`}
spec:
  containers:
  - name: main
    image: "`+testImage+`"
    ports: [{name: web, containerPort: 8080}]
    env: [{name: GRPC_PORT, value: "9090"}]
    readinessProbe: {`+probe+`, periodSeconds: 1}
`)
	}
	c.apply(t, ns, strings.Join(manifests, "---\n"))
	for kind := range kinds {
		c.awaitPod(t, ns, "probe-"+kind, "it is Ready", ready)
	}
	c.inPod(t, ns, "probe-grpc", "write", "/unready", "")
	c.awaitPod(t, ns, "probe-grpc", "it is not Ready", func(p *corev1.Pod) bool { return !ready(p) })
	contains(t, c.kubectl(t, "describe", "pod", "probe-grpc", "-n", ns), "Readiness probe failed", "NOT_SERVING")
}

func outOfMemory(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: oom}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "`+testImage+`", args: [alloc, "200"], resources: {limits: {memory: 32Mi}}}]
`)
	p := c.awaitPod(t, ns, "oom", "it has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if s := containerStatus(p, "main").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("terminated %+v, want OOMKilled with exit code 137", s)
	}
	contains(t, c.kubectl(t, "get", "pod", "oom", "-n", ns), "OOMKilled")
}

func crashLoop(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: main, image: "`+testImage+`", args: [exit, "3"]}]
`)
	p := c.awaitPod(t, ns, "crash", "it backs off", func(p *corev1.Pod) bool {
		w := containerStatus(p, "main").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	s := containerStatus(p, "main")
	if l := s.LastTerminationState.Terminated; s.RestartCount != 1 || l == nil || l.ExitCode != 3 || l.Reason != "Error" {
		t.Errorf("restarts %d, last %+v", s.RestartCount, l)
	}
	contains(t, s.State.Waiting.Message, "back-off 10s restarting failed container=main")
	contains(t, c.kubectl(t, "logs", "-n", ns, "crash"), "exiting with 3")
}

func restartPolicies(t *testing.T, c *cluster, ns string) {
	var manifests []string
	for policy, code := range map[string]string{"Never": "1", "OnFailure": "0"} {
		manifests = append(manifests, `apiVersion: v1
kind: Pod
metadata: {name: policy-`+strings.ToLower(policy)+`}
spec:
  restartPolicy: `+policy+`
  containers: [{name: main, image: "`+testImage+`", args: [exit, "`+code+`"]}]
`)
	}
	c.apply(t, ns, strings.Join(manifests, "---\n"))
	p := c.awaitPod(t, ns, "policy-never", "it has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if n := containerStatus(p, "main").RestartCount; n != 0 {
		t.Errorf("policy Never restarted %d times", n)
	}
	p = c.awaitPod(t, ns, "policy-onfailure", "it has succeeded", succeeded)
	if n := containerStatus(p, "main").RestartCount; n != 0 {
		t.Errorf("policy OnFailure restarted %d times after exit code 0", n)
	}
}

// gracefulStop runs preStop, then the signal, then lets the program end by itself.
func gracefulStop(t *testing.T, c *cluster, ns string) {
	dir := t.TempDir()
	c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: stop}
spec:
  containers:
  - name: main
    image: %q
    env: [{name: STOP_FILE, value: /host/stopped}]
    lifecycle:
      postStart: {exec: {command: [/server, write, /host/post, started]}}
      preStop: {exec: {command: [/server, write, /host/pre, stopping]}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: %q}}]
`, testImage, dir))
	c.awaitPod(t, ns, "stop", "it is Ready", ready)
	c.kubectl(t, "delete", "pod", "stop", "-n", ns, "--timeout=40s")
	for file, want := range map[string]string{"post": "started", "pre": "stopping", "stopped": "terminated"} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); string(b) != want {
			t.Errorf("%s has %q %v, want %q", file, b, err, want)
		}
	}
}

func zombies(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: zombies}
spec: {containers: [{name: main, image: "`+testImage+`"}]}
`)
	c.awaitPod(t, ns, "zombies", "it is Ready", ready)
	for range 5 {
		c.inPod(t, ns, "zombies", "orphan")
	}
	eventually(t, "orphans should be reaped", func() error {
		if r := c.run("kubectl", "exec", "-n", ns, "zombies", "--", "/server", "fetch", "http://localhost:8080/zombies"); r.stdout != "0\n" {
			return fmt.Errorf("zombies: %s", r)
		}
		return nil
	})
}

// acrossNodes asks a pod of each node from the other, by address.
func acrossNodes(t *testing.T, c *cluster, ns string) {
	addr := map[string]string{}
	for _, node := range []string{"worker-1", "worker-2"} {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: on-`+node+`}
spec:
  nodeSelector: {kubernetes.io/hostname: `+node+`}
  containers: [{name: main, image: "`+testImage+`"}]
`)
		p := c.awaitPod(t, ns, "on-"+node, "it is Ready", ready)
		if p.Spec.NodeName != node || p.Status.PodIP == "" || p.Status.HostIP == "" {
			t.Fatalf("%s is on %q with address %q of node address %q", p.Name, p.Spec.NodeName, p.Status.PodIP, p.Status.HostIP)
		}
		addr[node] = p.Status.PodIP
	}
	contains(t, c.inPod(t, ns, "on-worker-1", "fetch", "http://"+addr["worker-2"]+":8080/"), "v1 from on-worker-2")
	contains(t, c.inPod(t, ns, "on-worker-2", "fetch", "http://"+addr["worker-1"]+":8080/"), "v1 from on-worker-1")
}

// unscheduled waits until the scheduler has said why a pod has no node.
func (c *cluster) unscheduled(t *testing.T, ns, name string, parts ...string) {
	t.Helper()
	c.awaitPod(t, ns, name, "it is Unschedulable: "+strings.Join(parts, ", "), func(p *corev1.Pod) bool {
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && cond.Reason == corev1.PodReasonUnschedulable {
				for _, part := range parts {
					if !strings.Contains(cond.Message, part) {
						return false
					}
				}
				return true
			}
		}
		return false
	})
	eventually(t, "an event should say so too", func() error {
		r := c.run("kubectl", "get", "events", "-n", ns, "--field-selector", "involvedObject.name="+name)
		if !strings.Contains(r.stdout, "FailedScheduling") || !strings.Contains(r.stdout, parts[0]) {
			return fmt.Errorf("events: %s", r)
		}
		return nil
	})
}

// taints keep pods off, and what changes a node makes the scheduler try again.
func taints(t *testing.T, c *cluster, ns string) {
	t.Cleanup(func() {
		c.run("kubectl", "taint", "node", "worker-2", "dedicated-")
		c.run("kubectl", "label", "node", "worker-2", "disk-")
	})
	c.kubectl(t, "taint", "node", "worker-2", "dedicated=gpu:NoSchedule")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: picky}
spec:
  nodeSelector: {disk: ssd}
  containers: [{name: main, image: "`+testImage+`"}]
---
apiVersion: v1
kind: Pod
metadata: {name: tolerant}
spec:
  nodeSelector: {disk: ssd}
  tolerations: [{key: dedicated, operator: Exists}]
  containers: [{name: main, image: "`+testImage+`"}]
`)
	c.unscheduled(t, ns, "tolerant", "0/2 nodes are available", "2 node(s) didn't match Pod's node affinity/selector")
	c.unscheduled(t, ns, "picky", "1 node(s) had untolerated taint {dedicated: gpu}", "1 node(s) didn't match Pod's node affinity/selector")
	c.kubectl(t, "label", "node", "worker-2", "disk=ssd")
	if p := c.awaitPod(t, ns, "tolerant", "the label brings it to its node", ready); p.Spec.NodeName != "worker-2" {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
	c.kubectl(t, "taint", "node", "worker-2", "dedicated-")
	if p := c.awaitPod(t, ns, "picky", "it runs once the taint is gone", ready); p.Spec.NodeName != "worker-2" {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
}

// tooLarge asks for more than there is until another pod goes.
func tooLarge(t *testing.T, c *cluster, ns string) {
	node, err := c.k.CoreV1().Nodes().Get(t.Context(), "worker-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	most := node.Status.Allocatable.Memory().Value() >> 20
	pod := func(name string, mib int64) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: worker-1}
  containers: [{name: main, image: %q, resources: {requests: {memory: %dMi}}}]
`, name, testImage, mib)
	}
	c.apply(t, ns, pod("large", most/2))
	c.awaitPod(t, ns, "large", "it is Ready", ready)
	c.apply(t, ns, pod("larger", most-most/2+1))
	c.unscheduled(t, ns, "larger", "1 Insufficient memory", "1 node(s) didn't match Pod's node affinity/selector", fmt.Sprintf("needs %dMi", most-most/2+1))
	c.kubectl(t, "delete", "pod", "large", "-n", ns)
	c.awaitPod(t, ns, "larger", "it fits once the other is gone", ready)
	c.kubectl(t, "delete", "pod", "larger", "-n", ns)
}

// hostPorts can be had once on each node.
func hostPorts(t *testing.T, c *cluster, ns string) {
	c.kubectl(t, "create", "deployment", "ports", "-n", ns, "--image="+testImage, "--replicas=0")
	c.kubectl(t, "patch", "deployment", "ports", "-n", ns, "-p", `{"spec":{"replicas":3,"template":{"spec":{"hostNetwork":true,
		"containers":[{"name":"web","env":[{"name":"PORT","value":"7777"}],"ports":[{"containerPort":7777,"hostPort":7777}],
		"readinessProbe":{"httpGet":{"path":"/readyz","port":7777},"periodSeconds":1}}]}}}}`)
	pods := c.awaitPods(t, ns, "app=ports", "two are Ready and one has no node", func(pods []*corev1.Pod) bool {
		n := 0
		for _, p := range pods {
			if ready(p) {
				n++
			}
		}
		return n == 2 && len(pods) == 3
	})
	nodes := map[string]bool{}
	for _, p := range pods {
		if ready(p) {
			nodes[p.Spec.NodeName] = true
			if p.Status.PodIP != p.Status.HostIP {
				t.Errorf("%s has address %s on a node with %s", p.Name, p.Status.PodIP, p.Status.HostIP)
			}
			continue
		}
		c.unscheduled(t, ns, p.Name, "2 node(s) didn't have free ports for the requested pod ports")
	}
	if len(nodes) != 2 {
		t.Errorf("they run on %v", nodes)
	}
}

// nodeLeaves removes a node on which a DaemonSet has a pod, beside those on real ones. What
// it returns waits until that pod is gone, which takes its time, and ends the DaemonSet.
func nodeLeaves(t *testing.T, c *cluster) (gone func()) {
	t.Helper()
	ns := c.namespace(t, "leaves")
	c.apply(t, ns, `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers: [{name: main, image: "`+testImage+`"}]
---
apiVersion: v1
kind: Node
metadata: {name: visitor}
`)
	t.Cleanup(func() { c.run("kubectl", "delete", "node", "visitor", "--ignore-not-found") })
	c.kubectl(t, "patch", "node", "visitor", "--subresource=status", "-p", `{"status":{"capacity":{"cpu":"1","memory":"1Gi","pods":"9"},"allocatable":{"cpu":"1","memory":"1Gi","pods":"9"}}}`)
	on := func(want ...string) func([]*corev1.Pod) bool {
		return func(pods []*corev1.Pod) bool {
			var have []string
			for _, p := range pods {
				have = append(have, p.Spec.NodeName)
			}
			slices.Sort(have)
			return slices.Equal(have, want)
		}
	}
	c.awaitPods(t, ns, "app=everywhere", "the visitor has one", on("visitor", "worker-1", "worker-2"))
	c.kubectl(t, "delete", "node", "visitor")
	return func() {
		t.Helper()
		c.awaitPods(t, ns, "app=everywhere", "that of the visitor is gone", on("worker-1", "worker-2"))
		c.kubectl(t, "delete", "daemonset", "everywhere", "-n", ns)
		c.awaitPods(t, ns, "app=everywhere", "none is left", on())
	}
}

// TestNodeLost stops a worker so that its lease runs out: its pods are replaced
// elsewhere, and end when it comes back. Then the other one is drained.
func TestNodeLost(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	c.apply(t, "default", `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers: [{name: main, image: "`+testImage+`"}]
`)
	allReady := func(pods []*corev1.Pod) bool { return len(pods) == 2 && ready(pods[0]) && ready(pods[1]) }
	var lost *corev1.Pod
	for _, p := range c.awaitPods(t, "default", "app=web", "both are Ready", allReady) {
		if p.Spec.NodeName == "worker-2" {
			lost = p
		}
	}
	if lost == nil {
		t.Fatal("the pods are not spread over the nodes")
	}
	left := nodeLeaves(t, c)
	worker := c.processOf(t, " agent ", "--name worker-2")
	if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	running := func() { _ = syscall.Kill(worker, syscall.SIGCONT) }
	t.Cleanup(running)
	nodeIs := func(s corev1.ConditionStatus) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool {
			return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady && c.Status == s })
		}
	}
	await(t, c, nodesGVR, "", "worker-2", "its lease has run out", nodeIs(corev1.ConditionUnknown))
	pods := c.awaitPods(t, "default", "app=web", "the lost one is replaced", func(pods []*corev1.Pod) bool {
		n := 0
		for _, p := range pods {
			if ready(p) && p.Spec.NodeName == "worker-1" {
				n++
			}
		}
		return n == 2
	})
	// Nobody knows whether the lost one still runs: it stays until its node says.
	if i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return p.UID == lost.UID }); i < 0 || pods[i].DeletionTimestamp == nil {
		t.Errorf("the pod of the lost node should be kept, as deleting")
	}
	contains(t, c.kubectl(t, "get", "nodes"), "NotReady")
	contains(t, c.kubectl(t, "get", "events"), "TaintManagerEviction", "NodeNotReady")
	running()
	await(t, c, nodesGVR, "", "worker-2", "it is Ready again", nodeIs(corev1.ConditionTrue))
	awaitGone(t, c, podsGVR, "default", lost.Name)
	await(t, c, nodesGVR, "", "worker-2", "its taints are gone", func(n *corev1.Node) bool { return len(n.Spec.Taints) == 0 })
	left()
	drained(t, c)
}
