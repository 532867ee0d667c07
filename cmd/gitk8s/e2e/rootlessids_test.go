package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
)

// The user of TestRootlessIDs, who has an account, and the subordinate ids.
const (
	idsUser  = 54323
	idsName  = "gitk8s-e2e"
	firstSub = 2_100_000_000
	countSub = 65536
)

// account makes the user, without subordinate ids, for as long as the test lasts.
func account(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"newuidmap", "useradd"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, tool)
		}
	}
	sh(t, "useradd", "--no-create-home", "--user-group", "--uid", strconv.Itoa(idsUser),
		"-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", idsName)
	t.Cleanup(func() { sh(t, "userdel", idsName) })
}

// subordinate gives the user ids, or takes them away.
func subordinate(t *testing.T, what string, first int) {
	t.Helper()
	ids := fmt.Sprintf("%d-%d", first, first+countSub-1)
	sh(t, "usermod", "--"+what+"-subuids", ids, "--"+what+"-subgids", ids, idsName)
}

func sh(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// pushOwned pushes an image that runs as a user of its own, who alone may read a file.
func (c *cluster) pushOwned(t *testing.T) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, h := range map[string]tar.Header{
		"etc/passwd": {Mode: 0o644},
		"secret":     {Mode: 0o400, Uid: 1000, Gid: 1001},
	} {
		h.Name, h.Typeflag = name, tar.TypeReg
		body := map[string]string{"etc/passwd": "app:x:1000:1001::/:/server\n", "secret": "only mine"}[name]
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := image("VERSION=owned")
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg := cf.Config
	cfg.User = "app"
	if img, err = mutate.Config(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref, auth, err := c.reference("test/owned:v1")
	if err == nil {
		err = remote.Write(ref, img, auth)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// idsManifest has pods with users and groups of all kinds.
const idsManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: owned}
spec: {nodeName: worker-1, containers: [{name: c, image: "gitk8s.local/test/owned:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: grouped}
spec:
  nodeName: worker-1
  securityContext: {runAsNonRoot: true, runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567]}
  containers:
  - {name: c, image: "gitk8s.local/test/web:v1", volumeMounts: [{name: data, mountPath: /data}, {name: config, mountPath: /config}]}
  volumes: [{name: data, emptyDir: {}}, {name: config, configMap: {name: config, defaultMode: 0400}}]
---
apiVersion: v1
kind: Pod
metadata: {name: beyond}
spec: {nodeName: worker-1, securityContext: {runAsUser: 70000}, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: beyondgroup}
spec:
  nodeName: worker-1
  securityContext: {fsGroup: 80000}
  containers: [{name: c, image: "gitk8s.local/test/web:v1", volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, emptyDir: {}}]
`

// TestRootlessIDs: an ordinary user to whom the machine gives more ids has containers
// with users and groups, as with root; and a cluster keeps the ids it was begun with.
func TestRootlessIDs(t *testing.T) {
	account(t)
	t.Cleanup(func() { noProcesses(t, firstSub, countSub) }) // when the cluster is gone
	c := userCluster(t, idsUser)
	if err := c.start("--workers", "0"); err != nil {
		t.Fatal(err)
	}
	contains(t, c.up.out.String(), "as user 0 alone", "usermod --add-subuids", idsName)
	if err := c.interrupt(); err != nil {
		t.Fatal(err)
	}
	subordinate(t, "add", firstSub)
	if err := c.start("--workers", "0"); err != nil {
		t.Fatal(err)
	}
	contains(t, c.up.out.String(), "as user 0 alone", "this cluster was begun so", "down --purge")
	contains(t, c.ok(t, "check"), "this machine can run workers")
	if err := c.destroy(); err != nil {
		t.Fatal(err)
	}

	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	contains(t, c.up.out.String(), "the users 0 to 65536 and the groups 0 to 65536")
	c.pushOwned(t)
	ns := c.namespace(t, "ids")
	c.apply(t, ns, idsManifest)
	owned := c.awaitPod(t, ns, "owned", "it is Ready", ready)
	c.awaitPod(t, ns, "grouped", "it is Ready", ready)
	k := tool{c, []string{suite.bin, "kubectl"}}.in(ns)
	for _, q := range []struct{ pod, args, want string }{
		{"owned", "id", "1000 1001 []"},
		{"owned", "owner /secret", "1000:1001 400"},
		{"owned", "cat /secret", "only mine"},
		{"owned", "owner /server", "0:0 755"},
		{"grouped", "id", "1234 2345 [3456 4567]"},
		{"grouped", "owner /data", "0:3456 2777"},
		{"grouped", "write /data/file hello", ""},
		{"grouped", "owner /data/file", "1234:3456 644"},
		{"grouped", "cat /config/key", "value"},
	} {
		got := k.run(t, append([]string{"exec", q.pod, "--", "/server"}, strings.Fields(q.args)...)...)
		if strings.TrimSpace(got) != q.want {
			t.Errorf("%s in %s: %q, not %q", q.args, q.pod, got, q.want)
		}
	}
	for pod, want := range map[string]string{"beyond": "runAsUser 70000", "beyondgroup": "supplemental group 80000"} {
		c.awaitPod(t, ns, pod, "it says why it does not run", func(p *corev1.Pod) bool { return saysWhy(p, want) && saysWhy(p, "the last one in it is 65536") })
	}
	c.kill()
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	contains(t, c.up.out.String(), "the users 0 to 65536")
	if now := c.awaitPod(t, ns, "owned", "it is Ready", ready); lifeOf(now) != lifeOf(owned) {
		t.Errorf("the container was restarted: %+v before, %+v now", lifeOf(owned), lifeOf(now))
	}
	if err := errors.Join(c.interrupt(), c.leftovers()); err != nil {
		t.Fatal(err)
	}
	refusedWithoutIDs(t, c)
	subordinate(t, "add", firstSub)
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	c.awaitPod(t, ns, "owned", "it is Ready", ready)
}

// refusedWithoutIDs takes the ids away: nothing is done to files that belong to them.
func refusedWithoutIDs(t *testing.T, c *cluster) {
	t.Helper()
	subordinate(t, "del", firstSub)
	// Others won't do.
	subordinate(t, "add", firstSub+countSub)
	if r := c.run("up"); r.code == 0 || !strings.Contains(r.stderr, "begun with the users 0 to 65536") {
		t.Errorf("with other ids: %s", r)
	}
	subordinate(t, "del", firstSub+countSub)
	for _, command := range []string{"up", "down", "check"} {
		if r := c.run(command); r.code == 0 || !strings.Contains(r.stdout+r.stderr, "begun with the users 0 to 65536") {
			t.Errorf("without the ids: %s", r)
		}
	}
	if r := c.exec("", "", c.bin, "up"); r.code == 0 || !strings.Contains(r.stderr, "is the cluster of an ordinary user") {
		t.Errorf("by root: %s", r)
	}
}

// saysWhy looks for words in what keeps the pod's containers from running.
func saysWhy(p *corev1.Pod, words string) bool {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && strings.Contains(w.Message, words) {
			return true
		}
		if l := s.LastTerminationState.Terminated; l != nil && strings.Contains(l.Message, words) {
			return true
		}
	}
	return false
}
