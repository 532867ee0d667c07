package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPodSpec looks from inside containers, and with kubectl from outside, at what
// fields of a pod's spec say.
func TestPodSpec(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "podspec")
	for name, f := range map[string]func(*testing.T, tool, string){
		"cgroups":     cgroupLimits,
		"deadline":    podDeadline,
		"files":       podFiles,
		"group":       groupOfVolume,
		"hooks":       hooks,
		"host":        hostNamespaces,
		"images":      imageReasons,
		"memory":      oomScores,
		"probe grace": probeGrace,
		"probes":      probeFields,
		"security":    securityContexts,
		"settings":    settings,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, tool{c, []string{suite.bin, "kubectl"}}.in(ns), ns)
		})
	}
}

// cgroupValue reads what the cgroup of a process says, in version 1 or 2.
func cgroupValue(t *testing.T, pid int, controller, v1, v2 string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	file := ""
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch controllers := strings.Split(f[1], ","); {
		case slices.Contains(controllers, controller):
			file = filepath.Join("/sys/fs/cgroup", controller, f[2], v1)
		case f[0] == "0" && file == "":
			file = filepath.Join("/sys/fs/cgroup", f[2], v2)
		}
	}
	b, err = os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// cgroupLimits are what the kernel holds a container to.
func cgroupLimits(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: limited}
spec: {containers: [{name: main, image: "`+testImage+`", resources: {requests: {cpu: 100m}, limits: {cpu: 250m, memory: 64Mi}}}]}
`)
	k.c.awaitPod(t, ns, "limited", "it is Ready", ready)
	pid := child(t, k.c.processOf(t, "gitk8s-shim", ns+"/limited"))
	if got := cgroupValue(t, pid, "memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("its memory is %s", got)
	}
	if got := cgroupValue(t, pid, "cpu", "cpu.cfs_quota_us", "cpu.max"); got != "25000" && got != "25000 100000" {
		t.Errorf("its quota is %s", got)
	}
	if got := cgroupValue(t, pid, "cpu", "cpu.shares", "cpu.weight"); got != "102" && got != "4" {
		t.Errorf("its share is %s", got)
	}
}

// podDeadline ends a pod that would run for ever.
func podDeadline(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: brief}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "`+testImage+`"}]
`)
	k.c.awaitPod(t, ns, "brief", "it is Ready", ready)
	k.run(t, "patch", "pod", "brief", "-p", `{"spec":{"activeDeadlineSeconds":1}}`)
	k.c.awaitPod(t, ns, "brief", "it has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	contains(t, k.run(t, "describe", "pod", "brief"), "Status:           Failed", "Reason:           DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
}

// podFiles: a directory of a volume by the pod's name, a root that is read-only, and
// names of its own.
func podFiles(t *testing.T, k tool, ns string) {
	dir := t.TempDir()
	k.c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: files}
spec:
  hostAliases: [{ip: 192.0.2.7, hostnames: [shop.example, till.example]}]
  containers:
  - name: main
    image: %q
    env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    securityContext: {readOnlyRootFilesystem: true}
    volumeMounts:
    - {name: host, mountPath: /own, subPathExpr: of/$(POD_NAME)}
    - {name: scratch, mountPath: /scratch}
  volumes:
  - {name: host, hostPath: {path: %q, type: Directory}}
  - {name: scratch, emptyDir: {}}
`, testImage, dir))
	k.c.awaitPod(t, ns, "files", "it is Ready", ready)
	k.c.inPod(t, ns, "files", "write", "/own/f", "mine")
	hasFile(t, filepath.Join(dir, "of", "files", "f"), "mine")

	k.c.inPod(t, ns, "files", "write", "/scratch/f", "x")
	if r := k.try("", "exec", "files", "--", "/server", "write", "/f", "x"); r.code == 0 || !strings.Contains(r.stderr, "read-only file system") {
		t.Errorf("wrote to a root that is read-only: %s", r)
	}

	contains(t, k.c.inPod(t, ns, "files", "cat", "/etc/hosts"), "192.0.2.7\tshop.example\ttill.example\n")
	if got := k.c.inPod(t, ns, "files", "lookup", "host", "till.example"); got != "192.0.2.7\n" {
		t.Errorf("till.example is %q", got)
	}
}

// groupOfVolume: OnRootMismatch goes by the root of a volume alone, Always looks at
// all that is in it.
func groupOfVolume(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: grouped}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`)
	var file string
	for _, step := range []struct{ policy, want string }{{"Always", "0:4321"}, {"OnRootMismatch", "0:0"}, {"Always", "0:4321"}} {
		k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: grouped}
spec:
  `+oneContainer+`
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4321, fsGroupChangePolicy: `+step.policy+`}
  volumes: [{name: data, persistentVolumeClaim: {claimName: grouped}}]
`)
		k.c.awaitPod(t, ns, "grouped", "it is Ready", ready)
		if file == "" {
			contains(t, k.c.inPod(t, ns, "grouped", "owner", "/data"), "0:4321 2")
			k.c.inPod(t, ns, "grouped", "write", "/data/f", "x")
			file = filepath.Join(k.c.volumeOf(t, ns, "grouped").Spec.Local.Path, "f")
		}
		contains(t, k.c.inPod(t, ns, "grouped", "owner", "/data/f"), step.want+" ")
		k.run(t, "delete", "pod", "grouped")
		if err := os.Chown(file, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// hooks that wait and that ask others hold the start and the end of a container up.
func hooks(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: asked}
spec: {containers: [{name: main, image: "`+testImage+`"}]}
`)
	asked := k.c.awaitPod(t, ns, "asked", "it is Ready", ready)
	total := func() int {
		var n int
		if _, err := fmt.Sscanf(k.c.inPod(t, ns, "asked", "fetch", "http://localhost:8080/load/count"), `{"total":%d`, &n); err != nil {
			t.Error(err)
		}
		return n
	}
	const wait = 2 * time.Second
	k.c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: hooks}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: asks
    image: %[1]q
    lifecycle:
      postStart: {sleep: {seconds: %[2]d}}
      preStop: {httpGet: {host: %[3]q, port: 8080, path: "/load/start?url=http://localhost:8080/"}}
  - name: waits
    image: %[1]q
    env: [{name: PORT, value: "9000"}]
    lifecycle:
      preStop: {sleep: {seconds: %[2]d}}
  - name: fails
    image: %[1]q
    env: [{name: PORT, value: "9001"}]
    lifecycle:
      postStart: {exec: {command: [/server, exit, "7"]}}
  - name: refused
    image: %[1]q
    env: [{name: PORT, value: "9002"}]
    lifecycle:
      postStart: {httpGet: {host: %[3]q, port: 8080, path: /header}}
  - name: taken
    image: %[1]q
    env: [{name: PORT, value: "9003"}]
    lifecycle:
      postStart: {httpGet: {host: %[3]q, port: 8080, path: /header, httpHeaders: [{name: X-Probe, value: a}]}}
`, testImage, int(wait.Seconds()), asked.Status.PodIP))
	p := k.c.awaitPod(t, ns, "hooks", "the others run and two fail", func(p *corev1.Pod) bool {
		return containerStatus(p, "asks").Ready && containerStatus(p, "waits").Ready && containerStatus(p, "taken").Ready &&
			containerStatus(p, "fails").RestartCount > 0 && containerStatus(p, "refused").RestartCount > 0
	})
	if took := containerStatus(p, "waits").State.Running.StartedAt.Sub(containerStatus(p, "asks").State.Running.StartedAt.Time); took < wait {
		t.Errorf("postStart should hold the next container up for %s, not for %s", wait, took)
	}
	contains(t, k.run(t, "describe", "pod", "hooks"), "FailedPostStartHook")
	if n := total(); n > 0 {
		t.Errorf("asked before it stops: %d", n)
	}
	begun := time.Now()
	k.run(t, "delete", "pod", "hooks")
	if took := time.Since(begun); took < wait || took > 20*time.Second {
		t.Errorf("the pod was gone after %s", took)
	}
	if total() == 0 {
		t.Error("preStop has not asked")
	}
}

// hostNamespaces shows a pod what is the machine's.
func hostNamespaces(t *testing.T, k tool, ns string) {
	for name, spec := range map[string]string{"of-host": "hostPID: true, hostIPC: true, ", "of-pod": ""} {
		k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec: {`+spec+`containers: [{name: main, image: "`+testImage+`"}]}
`)
		k.c.awaitPod(t, ns, name, "it is Ready", ready)
		shim := k.c.processOf(t, "gitk8s-shim", ns+"/"+name)
		seen := k.c.inPod(t, ns, name, "processes")
		host, err := os.Readlink("/proc/self/ns/ipc")
		if err != nil {
			t.Fatal(err)
		}
		pod, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", child(t, shim)))
		if err != nil {
			t.Fatal(err)
		}
		shared := spec != ""
		if strings.Contains(seen, strconv.Itoa(shim)+" ") != shared || (pod == host) != shared {
			t.Errorf("%s: IPC namespace %s, the machine's %s; it sees\n%s", name, pod, host, seen)
		}
	}
}

// imageReasons are why containers don't start, as kubectl prints them, and that one
// starts by itself once its image is there.
func imageReasons(t *testing.T, k tool, ns string) {
	const late = "test/podspec:v1"
	k.run(t, "create", "configmap", "some", "--from-literal=a=b")
	watch, err := k.c.launch(append(k.args[:len(k.args):len(k.args)], "get", "pods", "-l", "of=images", "--watch")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = watch.cmd.Process.Kill()
		<-watch.done
	})
	var manifests []string
	for name, container := range map[string]string{
		"late":    `image: "gitk8s.local/` + late + `"`,
		"invalid": `image: "Upper/Case:v1"`,
		"never":   `image: "gitk8s.local/test/absent:v1", imagePullPolicy: Never`,
		"key":     `image: "` + testImage + `", env: [{name: A, valueFrom: {configMapKeyRef: {name: some, key: other}}}]`,
		"root":    `image: "` + testImage + `", securityContext: {runAsNonRoot: true}`,
		"command": `image: "` + testImage + `", command: [/absent]`,
	} {
		manifests = append(manifests, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {of: images}}
spec: {restartPolicy: OnFailure, terminationGracePeriodSeconds: 1, containers: [{name: main, %s}]}
`, name, container))
	}
	k.c.apply(t, ns, strings.Join(manifests, "---\n"))
	prints := func(pod, status string) {
		t.Helper()
		line := regexp.MustCompile(`(?m)^` + pod + ` +[01]/1 +` + status + ` `)
		eventually(t, "kubectl prints "+status+" of "+pod, func() error {
			if !line.MatchString(watch.out.String()) {
				return errors.New(watch.out.String())
			}
			return nil
		})
	}
	for _, w := range [][2]string{
		{"late", "ErrImagePull"}, {"late", "ImagePullBackOff"}, {"invalid", "InvalidImageName"}, {"never", "ErrImageNeverPull"},
		{"key", "CreateContainerConfigError"}, {"root", "CreateContainerConfigError"}, {"command", "RunContainerError"}, {"command", "CrashLoopBackOff"},
	} {
		prints(w[0], w[1])
	}
	contains(t, k.run(t, "describe", "pod", "late"), "Failed to pull image", "Error: ErrImagePull", `Back-off pulling image "gitk8s.local/`+late+`"`)
	contains(t, k.run(t, "describe", "pod", "key"), "couldn't find key other in ConfigMap "+ns+"/some")
	contains(t, k.run(t, "describe", "pod", "root"), "container has runAsNonRoot and image will run as root")
	if _, err := k.c.pushImage(late); err != nil {
		t.Fatal(err)
	}
	prints("late", "Running")
}

// lowestScore is what the kernel lets processes of this machine have: without
// CAP_SYS_RESOURCE a score can be raised only (proc_pid_oom_score_adj(5)).
func lowestScore(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	const sysResource = 24
	_, after, _ := strings.Cut(string(b), "CapEff:")
	have, err := strconv.ParseUint(strings.Fields(after)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if have&(1<<sysResource) != 0 {
		return -1000
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// oomScores are those of the three classes ("Node out of memory behavior" of the page
// "Node-pressure Eviction").
func oomScores(t *testing.T, k tool, ns string) {
	lowest := lowestScore(t)
	for _, c := range []struct {
		class, resources string
		from, to         int
	}{
		{"Guaranteed", "limits: {cpu: 100m, memory: 64Mi}", max(-997, lowest), max(-997, lowest)},
		{"Burstable", "requests: {memory: 64Mi}", max(3, lowest), 999},
		{"BestEffort", "", 1000, 1000},
	} {
		name := "oom-" + strings.ToLower(c.class)
		k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: `+name+`}
spec: {containers: [{name: main, image: "`+testImage+`", resources: {`+c.resources+`}}]}
`)
		k.c.awaitPod(t, ns, name, "it is Ready", ready)
		score, err := strconv.Atoi(strings.TrimSpace(k.c.inPod(t, ns, name, "cat", "/proc/self/oom_score_adj")))
		if err != nil || score < c.from || score > c.to {
			t.Errorf("%s has %d (%v), not %d to %d", c.class, score, err, c.from, c.to)
		}
		contains(t, k.run(t, "describe", "pod", name), "QoS Class:", c.class)
	}
}

// probeGrace: a container that a probe ends has as long as the probe says (KEP-2238),
// not as the pod does.
func probeGrace(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: probe-grace}
spec:
  terminationGracePeriodSeconds: 600
  containers:
  - name: main
    image: "`+testImage+`"
    livenessProbe: {httpGet: {path: /livez, port: 8080}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}
    lifecycle: {preStop: {sleep: {seconds: 500}}}
`)
	k.c.awaitPod(t, ns, "probe-grace", "it is Ready", ready)
	k.c.inPod(t, ns, "probe-grace", "write", "/dead", "")
	k.c.awaitPod(t, ns, "probe-grace", "it starts again", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount == 1 && ready(p) })
	k.run(t, "delete", "pod", "probe-grace", "--grace-period=1")
}

// probeFields: when a probe begins, how often it has to succeed, how long it may take, by
// what scheme and of which host it asks.
func probeFields(t *testing.T, k tool, ns string) {
	var manifests []string
	for name, probe := range map[string]string{
		"slow":  "exec: {command: [/server, sleep, 1h]}, timeoutSeconds: 1",
		"https": "httpGet: {path: /readyz, port: 8080, scheme: HTTPS}",
		"host":  "httpGet: {path: /readyz, port: 8080, host: 127.0.0.127}",
		"later": "httpGet: {path: /readyz, port: 8080}, initialDelaySeconds: 2, successThreshold: 3",
	} {
		manifests = append(manifests, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: probe-%s}
spec: {containers: [{name: main, image: %q, readinessProbe: {%s, periodSeconds: 1}}]}
`, name, testImage, probe))
	}
	k.c.apply(t, ns, strings.Join(manifests, "---\n"))
	p := k.c.awaitPod(t, ns, "probe-later", "it is Ready", ready)
	if took := readyTime(p).Sub(containerStatus(p, "main").State.Running.StartedAt.Time); took < 4*time.Second {
		t.Errorf("it was Ready after %s", took)
	}
	for name, why := range map[string]string{
		"slow": "timed out after 1s", "https": "server gave HTTP response to HTTPS client", "host": "127.0.0.127:8080",
	} {
		eventually(t, "an event of "+name+" says "+why, func() error {
			if out := k.run(t, "describe", "pod", "probe-"+name); !strings.Contains(out, "Readiness probe failed") || !strings.Contains(out, why) {
				return errors.New(out)
			}
			return nil
		})
	}
}

// securityContexts are what the kernel says of the processes.
func securityContexts(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: security}
spec:
  securityContext:
    runAsUser: 1234
    runAsGroup: 2345
    fsGroup: 3456
    supplementalGroups: [4567]
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]
  containers:
  - {name: plain, image: "`+testImage+`", env: [{name: PORT, value: "80"}], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: confined, image: "`+testImage+`", env: [{name: PORT, value: "8081"}],
     securityContext: {runAsUser: 0, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_ADMIN]}, seccompProfile: {type: RuntimeDefault}}}
  - {name: unconfined, image: "`+testImage+`", env: [{name: PORT, value: "8082"}], securityContext: {runAsNonRoot: true, seccompProfile: {type: Unconfined}}}
  - {name: privileged, image: "`+testImage+`", env: [{name: PORT, value: "8083"}], securityContext: {runAsUser: 0, privileged: true}}
  volumes: [{name: v, emptyDir: {}}]
`)
	k.c.awaitPod(t, ns, "security", "it is Ready", ready)
	in := func(container string, args ...string) string {
		t.Helper()
		return k.run(t, append([]string{"exec", "security", "-c", container, "--", "/server"}, args...)...)
	}
	if got := in("plain", "id"); got != "1234 2345 [2345 3456 4567]\n" && got != "1234 2345 [3456 4567]\n" {
		t.Errorf("it is %q", got)
	}
	in("plain", "write", "/v/f", "x")
	contains(t, in("plain", "owner", "/v/f"), "1234:3456 ")
	contains(t, in("plain", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"), "80")
	const netAdmin = 1 << 12
	contains(t, in("confined", "cat", "/proc/self/status"), "Uid:\t0\t", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", fmt.Sprintf("CapEff:\t%016x\n", netAdmin), fmt.Sprintf("CapBnd:\t%016x\n", netAdmin))
	contains(t, in("unconfined", "cat", "/proc/self/status"), "Uid:\t1234\t", "NoNewPrivs:\t0\n", "Seccomp:\t0\n", "CapEff:\t0000000000000000\n")
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, in("privileged", "cat", "/proc/self/status"), regexp.MustCompile(`CapBnd:\t[0-9a-f]+\n`).FindString(string(own)), "Seccomp:\t0\n")
}

// settings: ones that cannot be changed, and ones that may be missing.
func settings(t *testing.T, k tool, ns string) {
	k.c.apply(t, ns, `apiVersion: v1
kind: ConfigMap
metadata: {name: fixed}
immutable: true
data: {a: one}
---
apiVersion: v1
kind: Pod
metadata: {name: settings}
spec:
  containers:
  - name: main
    image: "`+testImage+`"
    volumeMounts: [{name: all, mountPath: /all}, {name: none, mountPath: /none}]
  volumes:
  - {name: none, secret: {secretName: absent, optional: true}}
  - name: all
    projected:
      defaultMode: 0440
      sources:
      - configMap: {name: fixed, items: [{key: a, path: deep/a, mode: 0400}]}
      - serviceAccountToken: {path: token, audience: shop, expirationSeconds: 600}
`)
	r := k.try("", "patch", "configmap", "fixed", "-p", `{"data":{"a":"two"}}`)
	contains(t, r.stderr, "data: Forbidden: field is immutable when `immutable` is set")
	k.c.awaitPod(t, ns, "settings", "it is Ready", ready)
	for file, want := range map[string]string{"/all/deep/a": "0:0 400\n", "/all/token": "0:0 440\n"} {
		if got := k.c.inPod(t, ns, "settings", "owner", file); got != want {
			t.Errorf("%s is %q, not %q", file, got, want)
		}
	}
	token := k.c.inPod(t, ns, "settings", "cat", "/all/token")
	review := k.try(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"`+token+`","audiences":["shop"]}}`, "create", "-o", "yaml", "-f", "-")
	contains(t, review.String(), "authenticated: true", "system:serviceaccount:"+ns+":default", "- shop")
}
