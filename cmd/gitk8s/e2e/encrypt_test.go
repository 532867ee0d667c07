package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/follow"
)

// TestEncrypt runs workers of both families with --encrypt wireguard. Where the kernel has
// no WireGuard it sees them refuse to start; `make test-kernel` runs it where it has.
func TestEncrypt(t *testing.T) {
	t.Parallel()
	s := newSites(t, 2)
	server, _ := s.machine("server", 0, 5)
	one, _ := s.machine("one", 0, 11)
	two, _ := s.machine("two", 1, 12)
	workers := map[string]*machine{"one": one, "two": two}
	c := server.cluster
	if err := c.serve("--listen", server.ip.String(), "--cluster-cidr", pods4+","+pods6, "--service-cidr", services4+","+services6); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	for name, m := range workers {
		m.enroll(t, c, name, nil, m.ips...)
	}
	one.configure(t, "one", map[string]string{"encrypt": "wireguard"})
	if err := network.CheckWireGuard(one.netns); err != nil {
		if os.Getenv("GITK8S_TEST_WIREGUARD") != "" {
			t.Fatal(err)
		}
		r := one.run("agent", "--node-dir", one.nodeDir("one"))
		if r.code == 0 {
			t.Errorf("it started: %s", r)
		}
		contains(t, r.stderr, "--encrypt wireguard: the kernel has no WireGuard")
		return
	}
	patience = 5 * time.Minute // the machine is emulated
	startWorkers(t, c, workers)
	ns := c.namespace(t, "encrypt")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: one}
spec: {nodeName: one, terminationGracePeriodSeconds: 1, containers: [{name: c, image: gitk8s.local/test/web:v1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec: {nodeName: two, terminationGracePeriodSeconds: 1, containers: [{name: c, image: gitk8s.local/test/web:v1}]}
`)
	pods := map[string]*corev1.Pod{}
	for name := range workers {
		pods[name] = c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	fetchFrom := func(from, to, ip string) error {
		r := c.run("kubectl", "exec", "-n", ns, from, "--", "/server", "fetch", clientURL(ip, 8080))
		if !strings.Contains(r.stdout, pods[to].Name) {
			return errors.New(r.String())
		}
		return nil
	}
	// unreached says which of a pod's addresses is reached although none is to be.
	unreached := func(from, to string) error {
		for _, ip := range podIPs(pods[to]) {
			if fetchFrom(from, to, ip) == nil {
				return errors.New(from + " reaches " + ip)
			}
		}
		return nil
	}
	fetch := func(from, to string) (err error) {
		for _, ip := range podIPs(pods[to]) {
			err = errors.Join(err, fetchFrom(from, to, ip))
		}
		return err
	}
	eventually(t, "the event", func() error {
		list, err := c.k.CoreV1().Events("").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=PeerNotEncrypted,involvedObject.name=one"})
		if err == nil && (len(list.Items) == 0 || !strings.Contains(list.Items[0].Message, "node two")) {
			err = errors.New("none yet")
		}
		return err
	})
	for _, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
		if err := unreached(pair[0], pair[1]); err != nil {
			t.Errorf("without encryption %v", err)
		}
	}
	// It begins to encrypt, and its pods run on.
	if err := two.worker.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-two.worker.done
	two.configure(t, "two", map[string]string{"encrypt": "wireguard"})
	two.startWorker(t, "two")
	for name := range workers {
		await(t, c, nodesGVR, "", name, "it has published its key", func(n *corev1.Node) bool {
			_, err := network.ParsePublicKey(n.Annotations[follow.AnnotationWireGuardKey])
			return err == nil && nodeReady(n)
		})
		if st, err := os.Stat(filepath.Join(workers[name].dataDir, "nodes", name, "wireguard.key")); err != nil || st.Mode().Perm() != 0o600 {
			t.Error(st, err)
		}
	}
	for _, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
		eventually(t, pair[0]+" reaches "+pair[1], func() error { return fetch(pair[0], pair[1]) })
	}
	// It ends to: the key is taken off, and again nothing is sent.
	if err := two.worker.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-two.worker.done
	two.configure(t, "two", map[string]string{"encrypt": ""})
	two.startWorker(t, "two")
	await(t, c, nodesGVR, "", "two", "its key is gone", func(n *corev1.Node) bool {
		_, there := n.Annotations[follow.AnnotationWireGuardKey]
		return !there && nodeReady(n)
	})
	eventually(t, "one does not reach two any more", func() error { return unreached("one", "two") })
}
