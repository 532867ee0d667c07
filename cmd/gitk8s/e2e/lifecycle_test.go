package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestLifecycle goes through what people do to a pod while it lives, with stock
// kubectl.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "lifecycle")
	for name, f := range map[string]func(*testing.T, tool, string){
		"debug":  debugContainers,
		"attach": attachStdin,
		"run":    runInteractively,
		"cp":     copies,
		"follow": followLogs,
		"SPDY":   bySPDY,

		"eviction":         storageEviction,
		"restart rules":    restartRules,
		"service account":  serviceAccount,
		"shared processes": sharedProcesses,
		"sysctls":          forbiddenSysctl,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, tool{c, []string{suite.bin, "kubectl"}}.in(ns), ns)
		})
	}
}

// ephemeralStatus is the status of the pod's ephemeral container of that name.
func ephemeralStatus(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range p.Status.EphemeralContainerStatuses {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// debugContainers look into a running pod, which goes on as if nothing had been.
func debugContainers(t *testing.T, k tool, ns string) {
	k.run(t, "run", "debugged", "--image="+testImage)
	k.c.awaitPod(t, ns, "debugged", "ready", ready)
	k.run(t, "debug", "debugged", "--image="+testImage, "--target=debugged", "-c", "look", "--", "/server", "processes")
	p := k.c.awaitPod(t, ns, "debugged", "the debug container has ended", func(p *corev1.Pod) bool {
		return ephemeralStatus(p, "look").State.Terminated != nil
	})
	if !ready(p) || containerStatus(p, "debugged").RestartCount != 0 {
		t.Errorf("the pod has changed: %+v", p.Status)
	}
	contains(t, k.run(t, "logs", "debugged", "-c", "look"), "1 /dev/.gitk8s-init /server\n", "/server processes")
	contains(t, k.run(t, "describe", "pod", "debugged"), "Ephemeral Containers:", "look:", "Completed")
	r := k.try("", "debug", "debugged", "--image="+testImage, "--target=nobody", "--", "/server", "processes")
	contains(t, r.stderr, `targetContainerName: Not found: "nobody"`)
}

// attachStdin talks to the first process of a container.
func attachStdin(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: attached}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "`+testImage+`", args: [stdin], stdin: true, stdinOnce: true}]
`)
	k.c.awaitPod(t, ns, "attached", "ready", ready)
	big := strings.Repeat("0123456789abcdef", 1<<16) + "\n"
	r := k.try(big, "attach", "-i", "attached")
	if r.code != 0 || r.stdout != big {
		t.Errorf("attach: code %d, %d bytes back of %d, %s", r.code, len(r.stdout), len(big), r.stderr)
	}
	k.c.awaitPod(t, ns, "attached", "it ends with its input", succeeded)
}

// runInteractively leaves nothing behind.
func runInteractively(t *testing.T, k tool, ns string) {
	r := k.try("one\ntwo\n", "run", "once", "-i", "--rm", "--restart=Never", "--image="+testImage, "--", "stdin")
	if r.code != 0 {
		t.Fatal(r)
	}
	contains(t, r.stdout, "one\ntwo\n", `pod "once" deleted`)
	eventually(t, "the pod is gone", func() error {
		if r := k.try("", "get", "pod", "once"); !strings.Contains(r.stderr, "NotFound") {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// copies takes files and directories into a container and out again, with every kubectl.
func copies(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: copied}
spec:
  containers:
  - {name: main, image: "`+testImage+`"}
  - {name: other, image: "`+testImage+`", args: [sleep, 1h], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {}}]
`)
	k.c.awaitPod(t, ns, "copied", "ready", ready)
	for name, k := range kubectls(k.c) {
		k := k.in(ns)
		local, back := t.TempDir(), t.TempDir()
		tree := filepath.Join(local, name)
		big := strings.Repeat("0123456789abcdef", 1<<16)
		if err := errors.Join(os.MkdirAll(filepath.Join(tree, "deep"), 0o755), os.WriteFile(filepath.Join(tree, "top"), []byte(name), 0o644),
			os.WriteFile(filepath.Join(tree, "deep", "big"), []byte(big), 0o644)); err != nil {
			t.Fatal(err)
		}
		// One file, to a name and into a directory that is there.
		k.run(t, "cp", filepath.Join(tree, "top"), "copied:/"+name+"-top")
		k.run(t, "cp", filepath.Join(tree, "top"), ns+"/copied:/v", "-c", "other")
		for container, file := range map[string]string{"main": "/" + name + "-top", "other": "/v/top"} {
			if got := k.run(t, "exec", "copied", "-c", container, "--", "/server", "cat", file); got != name {
				t.Errorf("%s: %s of %s has %q", name, file, container, got)
			}
		}
		k.run(t, "cp", "copied:/v/top", filepath.Join(back, "one"), "-c", "other")
		hasFile(t, filepath.Join(back, "one"), name)
		k.run(t, "cp", tree, "copied:/v", "-c", "other")
		k.run(t, "cp", "copied:/v/"+name, filepath.Join(back, "tree"), "-c", "other")
		hasFile(t, filepath.Join(back, "tree", "top"), name)
		hasFile(t, filepath.Join(back, "tree", "deep", "big"), big)
	}
}

// followLogs ends when the container does, with all that it has printed, though that is
// more than one file of the node holds.
func followLogs(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "`+testImage+`", args: [stdin], stdin: true, stdinOnce: true}]
`)
	k.c.awaitPod(t, ns, "talks", "ready", ready)
	follow, err := k.c.launch(append(k.args[:len(k.args):len(k.args)], "logs", "-f", "talks")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = follow.cmd.Process.Kill() })
	said := strings.Repeat(strings.Repeat("0123456789abcdef", 64)+"\n", 12<<10)
	if r := k.try(said, "attach", "-i", "talks"); r.code != 0 {
		t.Fatalf("attach: code %d, %s", r.code, r.stderr)
	}
	select {
	case <-follow.done:
	case <-time.After(patience):
		t.Fatal("it follows a container that has ended")
	}
	if got := follow.out.String(); got != said || follow.err != nil {
		t.Errorf("it printed %d bytes of %d, %v", len(got), len(said), follow.err)
	}
	rotated, err := filepath.Glob(filepath.Join(k.c.dataDir, "nodes", "*", "logs", "pods", ns+"_talks_*", "main", "0.log.*"))
	if err != nil || len(rotated) == 0 {
		t.Errorf("the log was not rotated: %v", err)
	}
	if got := k.run(t, "logs", "talks", "--tail=2"); got != said[len(said)-2*1025:] {
		t.Errorf("the last lines are %q", got)
	}
}

// bySPDY streams as kubectl did before it used WebSockets (KEP-4006).
func bySPDY(t *testing.T, k tool, ns string) {
	k = tool{k.c, append([]string{"env", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}, k.args...)}
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: old}
spec:
  containers:
  - {name: main, image: "`+testImage+`"}
  - {name: echoes, image: "`+testImage+`", args: [stdin], stdin: true, stdinOnce: true}
`)
	k.c.awaitPod(t, ns, "old", "ready", ready)
	if r := k.try("from stdin", "exec", "-i", "old", "--", "/server", "stdin"); r.code != 0 || r.stdout != "from stdin" {
		t.Errorf("exec -i: %s", r)
	}
	if r := k.try("", "exec", "old", "--", "/server", "exit", "7"); r.code != 7 {
		t.Errorf("exec should pass exit code 7 on: %s", r)
	}
	if r := k.try("said", "attach", "-i", "old", "-c", "echoes"); r.code != 0 || r.stdout != "said" {
		t.Errorf("attach -i: %s", r)
	}
	portForward(t, k, "old", "8080", "v1 from old")
}

// sharedProcesses lets one container of a pod see and signal those of another.
func sharedProcesses(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: together}
spec:
  shareProcessNamespace: true
  containers:
  - {name: web, image: "`+testImage+`"}
  - {name: beside, image: "`+testImage+`", args: [sleep, 1h]}
`)
	k.c.awaitPod(t, ns, "together", "ready", ready)
	contains(t, k.run(t, "exec", "together", "-c", "beside", "--", "/server", "processes"), "1 /dev/.gitk8s-init\n", "/server sleep 1h", "/server processes")
}

// forbiddenSysctl is refused by the node, not by the API.
func forbiddenSysctl(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: tuned}
spec:
  securityContext: {sysctls: [{name: kernel.msgmax, value: "65536"}]}
  containers: [{name: main, image: "`+testImage+`"}]
`)
	k.c.awaitPod(t, ns, "tuned", "it is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	contains(t, k.run(t, "get", "pod", "tuned"), "SysctlForbidden")
	contains(t, k.run(t, "describe", "pod", "tuned"), `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted`)
}

// restartRules restart a container of a pod that is otherwise never restarted.
func restartRules(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: rules}
spec:
  restartPolicy: Never
  containers:
  - name: retried
    image: "`+testImage+`"
    args: [exit, "42"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
  - {name: kept, image: "`+testImage+`", restartPolicy: Always}
`)
	k.c.awaitPod(t, ns, "rules", "it is restarted", func(p *corev1.Pod) bool {
		return containerStatus(p, "retried").RestartCount > 0 && p.Status.Phase == corev1.PodRunning
	})
	k.c.awaitPod(t, ns, "rules", "it waits", func(p *corev1.Pod) bool {
		w := containerStatus(p, "retried").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff" && containerStatus(p, "kept").Ready
	})
	contains(t, k.run(t, "get", "pod", "rules"), "1/2", "CrashLoopBackOff")
}

// serviceAccount calls the API out of a pod as client libraries do, with what is
// mounted there.
func serviceAccount(t *testing.T, k tool, ns string) {
	k.run(t, "create", "serviceaccount", "robot")
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: robot}
spec:
  serviceAccountName: robot
  restartPolicy: Never
  containers: [{name: main, image: "`+testImage+`", args: [whoami]}]
---
apiVersion: v1
kind: Pod
metadata: {name: nobody}
spec:
  automountServiceAccountToken: false
  restartPolicy: Never
  containers: [{name: main, image: "`+testImage+`", args: [exists, /var/run/secrets/kubernetes.io/serviceaccount/token]}]
`)
	k.c.awaitPod(t, ns, "robot", "it has succeeded", succeeded)
	contains(t, k.run(t, "logs", "robot"), ns+": system:serviceaccount:"+ns+":robot", "system:serviceaccounts:"+ns, "authentication.kubernetes.io/pod-name")
	k.c.awaitPod(t, ns, "nobody", "it has no token", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	token := strings.TrimSpace(k.run(t, "create", "token", "robot", "--duration=10m"))
	r := k.try("", "--token="+token, "--kubeconfig=/dev/null", "--server="+k.c.info.API, "--insecure-skip-tls-verify", "auth", "whoami")
	contains(t, r.stdout+r.stderr, "system:serviceaccount:"+ns+":robot")
}

// storageEviction ends a pod that takes more of the node's disk than it may.
func storageEviction(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  containers: [{name: main, image: "`+testImage+`", volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
`)
	k.c.awaitPod(t, ns, "greedy", "ready", ready)
	k.run(t, "exec", "greedy", "--", "/server", "fill", "/v/file", "2048")
	k.c.awaitPod(t, ns, "greedy", "it is evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	contains(t, k.run(t, "describe", "pod", "greedy"), "Evicted", `Usage of EmptyDir volume "v" exceeds the limit "1Mi".`)
}
