package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestUserNamespaces: root of a pod with hostUsers: false is nobody on the machine, and
// has its volumes all the same.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "users")
	c.kubectl(t, "create", "configmap", "settings", "-n", ns, "--from-literal=colour=blue")
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/given", []byte("by the machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := func(name, adjust string) {
		c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: users}}
spec:
  hostUsers: false
  nodeName: worker-1
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 2000}
  containers:
  - name: web
    image: %s
    readinessProbe: {httpGet: {path: /readyz, port: 80}, periodSeconds: 1}
    env: [{name: PORT, value: "80"}]
    %s
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: settings, mountPath: /settings}
    - {name: machine, mountPath: /machine}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: settings, configMap: {name: settings, defaultMode: 0440}}
  - {name: machine, hostPath: {path: "%s"}}
`, name, testImage, adjust, dir))
	}
	pod("one", "")
	pod("two", `securityContext: {procMount: Unmasked, capabilities: {add: [NET_ADMIN]}}`)
	pod("three", `securityContext: {privileged: true}`)
	ranges := map[string]bool{}
	for _, name := range []string{"one", "two", "three"} {
		p := c.awaitPod(t, ns, name, "it is Ready", ready)
		m := strings.Fields(c.inPod(t, ns, name, "cat", "/proc/self/uid_map"))
		if len(m) != 3 || m[0] != "0" || m[1] == "0" || m[2] != "65536" || ranges[m[1]] {
			t.Errorf("%s has the users %q, others have %v", name, m, ranges)
		}
		ranges[m[1]] = true
		// The machine sees whose the process is.
		pid := child(t, c.processOf(t, "gitk8s-shim", ns+"/"+name))
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(b), "Uid:\t"+m[1]+"\t") {
			t.Errorf("%s on the machine, %v:\n%s", name, err, b)
		}
		contains(t, c.inPod(t, ns, name, "cat", "/proc/self/status"), "Uid:\t0\t0\t0\t0")
		for _, d := range []string{"/scratch", "/memory", "/machine"} {
			c.inPod(t, ns, name, "write", d+"/"+name, "written")
			c.cat(t, ns, name, d+"/"+name, "written")
		}
		c.cat(t, ns, name, "/settings/colour", "blue")
		c.cat(t, ns, name, "/machine/given", "by the machine")
		contains(t, c.inPod(t, ns, name, "whoami"), "system:serviceaccount:"+ns+":default")
		if info, err := os.Stat(dir + "/" + name); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("what the pod's root wrote to the machine is %v's, %v", info, err)
		}
		if u := containerStatus(p, "web").User; u == nil || u.Linux == nil || u.Linux.UID != 0 || !slices.Contains(u.Linux.SupplementalGroups, 2000) {
			t.Errorf("%s is said to run as %+v", name, u)
		}
		if len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: %+v", name, p.Status)
		}
	}
	c.inPod(t, ns, "two", "write", "/proc/sys/net/ipv4/ip_forward", "1")
	r := c.run("kubectl", "exec", "-n", ns, "one", "--", "/server", "write", "/proc/sys/net/ipv4/ip_forward", "1")
	contains(t, r.stderr, "read-only file system")
	k := tool{c, []string{suite.bin, "kubectl"}}.in(ns)
	k.run(t, "debug", "one", "--image="+testImage, "--target=web", "-c", "look", "--", "/server", "cat", "/proc/1/root/scratch/one")
	c.awaitPod(t, ns, "one", "the debug container has ended", func(p *corev1.Pod) bool { return ephemeralStatus(p, "look").State.Terminated != nil })
	contains(t, k.run(t, "logs", "one", "-c", "look"), "written")

	// A container that starts again has the same users.
	before := c.inPod(t, ns, "one", "cat", "/proc/self/uid_map")
	kill9(t, child(t, c.processOf(t, "gitk8s-shim", ns+"/one")))
	c.awaitPod(t, ns, "one", "it runs again", func(p *corev1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	if after := c.inPod(t, ns, "one", "cat", "/proc/self/uid_map"); after != before {
		t.Errorf("its users are %q, and were %q", after, before)
	}
	for spec, want := range map[string]string{
		"hostNetwork: true": "spec.hostNetwork: Forbidden: when `hostUsers` is false", "hostPID: true": "spec.hostPID: Forbidden: when `hostUsers` is false",
	} {
		r := c.exec("", "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {hostUsers: false, "+spec+", containers: [{name: c, image: i}]}}", suite.bin, "kubectl", "apply", "-n", ns, "-f", "-")
		contains(t, r.stderr, want)
	}
	c.apply(t, ns, "{apiVersion: v1, kind: Pod, metadata: {name: far}, spec: {hostUsers: false, containers: [{name: c, image: "+`"`+testImage+`"`+", securityContext: {runAsUser: 70000}}]}}")
	c.awaitPod(t, ns, "far", "it says why it does not run", func(p *corev1.Pod) bool {
		st := containerStatus(p, "c") // after a while it waits for the next try, and its last state says why
		const why = "with hostUsers: false there are those from 0 to 65535"
		return st.State.Waiting != nil && strings.Contains(st.State.Waiting.Message, why) ||
			st.LastTerminationState.Terminated != nil && strings.Contains(st.LastTerminationState.Terminated.Message, why)
	})
}
