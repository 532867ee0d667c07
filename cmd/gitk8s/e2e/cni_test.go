package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestCNI runs a worker whose pods' network Debian's plugins make.
func TestCNI(t *testing.T) {
	t.Parallel()
	const plugins = "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		missing(t, "containernetworking-plugins")
	}
	s := newSites(t, 1)
	server, _ := s.machine("server", 0, 5)
	m, _ := s.machine("cni", 0, 11)
	c := server.cluster
	if err := c.serve("--listen", server.ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	conf, leases := t.TempDir(), t.TempDir()
	m.enroll(t, c, "cni", map[string]string{"cni-conf-dir": conf, "cni-bin-dir": plugins})
	m.startWorker(t, "cni")
	await(t, c, nodesGVR, "", "cni", "the node says what it lacks", func(n *corev1.Node) bool {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionFalse {
				return strings.Contains(cond.Message, "reason:NetworkPluginNotReady") && strings.Contains(cond.Message, conf)
			}
		}
		return false
	})
	configure := func(plugins ...map[string]any) {
		t.Helper()
		b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
		if err == nil {
			err = os.WriteFile(filepath.Join(conf, "10-pods.conflist"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	given := func() []string {
		files, err := filepath.Glob(filepath.Join(leases, "pods", "10.*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	configure(map[string]any{"type": "gitk8s-missing"})
	await(t, c, nodesGVR, "", "cni", "the node is Ready", nodeReady)
	ns := c.namespace(t, "cni")
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: gitk8s.local/test/web:v1, ports: [{containerPort: 8080, hostPort: 8888}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: gitk8s.local/test/web:v1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`)
	c.eventOf(t, ns, "web", "FailedCreatePodSandBox", `failed to find plugin "gitk8s-missing"`)
	configure(map[string]any{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": leases, "ranges": [][]any{{map[string]any{"subnet": "10.88.9.0/24"}}}},
	}, map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true})
	web := c.awaitPod(t, ns, "web", "it is Ready", ready)
	other := c.awaitPod(t, ns, "other", "it is Ready", ready)
	if !strings.HasPrefix(web.Status.PodIP, "10.88.9.") || len(given()) != 2 {
		t.Errorf("the address is %s; given out: %v", web.Status.PodIP, given())
	}
	everything := func(t *testing.T) {
		t.Helper()
		contains(t, c.kubectl(t, "logs", "-n", ns, "web"), "listening v1")
		contains(t, c.kubectl(t, "exec", "-n", ns, "other", "--", "/server", "fetch", "http://"+web.Status.PodIP+":8080/"), "web")
		// Names, services, and the API on another machine.
		contains(t, c.kubectl(t, "exec", "-n", ns, "web", "--", "/server", "fetch", "http://web."+ns+"/"), "web")
		contains(t, c.kubectl(t, "exec", "-n", ns, "web", "--", "/server", "whoami"), "system:serviceaccount:"+ns+":default")
		if out, _, err := c.from(server.netns, m.ip.String()+":8888", "/"); err != nil || !strings.Contains(out, "web") {
			t.Errorf("the host port, from another machine: %q %v", out, err)
		}
		if out, _, err := c.from(m.netns, c.service(t, ns, "web").Spec.ClusterIP+":80", "/"); err != nil || !strings.Contains(out, "web") {
			t.Errorf("the service, from the node: %q %v", out, err)
		}
	}
	everything(t)
	t.Run("a worker is killed, and a pod goes meanwhile", func(t *testing.T) {
		kill9(t, m.worker.cmd.Process.Pid)
		<-m.worker.done
		c.kubectl(t, "delete", "pod", "-n", ns, "other", "--force", "--grace-period=0")
		m.startWorker(t, "cni")
		eventually(t, "its address is free", func() error {
			if left := given(); len(left) != 1 {
				return fmt.Errorf("given out: %v", left)
			}
			return nil
		})
		if now := c.awaitPod(t, ns, "web", "it is Ready", ready); lifeOf(now) != lifeOf(web) || now.Status.PodIP != web.Status.PodIP {
			t.Errorf("the other one changed: %+v, before %+v", lifeOf(now), lifeOf(web))
		}
		c.apply(t, ns, "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: \"gitk8s.local/test/web:v1\"}]}\n")
		if again := c.awaitPod(t, ns, "other", "it is Ready", ready); again.UID == other.UID {
			t.Error("it is the old one")
		}
		everything(t)
	})
	t.Run("users of its own", func(t *testing.T) {
		c.apply(t, ns, "apiVersion: v1\nkind: Pod\nmetadata: {name: users}\nspec: {hostUsers: false, terminationGracePeriodSeconds: 1, containers: [{name: c, image: \"gitk8s.local/test/web:v1\"}]}\n")
		c.eventOf(t, ns, "users", "FailedCreatePodSandBox", "hostUsers: false")
	})
	t.Run("no way back with pods", func(t *testing.T) {
		kill9(t, m.worker.cmd.Process.Pid)
		<-m.worker.done
		m.configure(t, "cni", map[string]string{"cni-conf-dir": ""})
		r := m.run("agent", "--node-dir", m.nodeDir("cni"))
		if r.code == 0 {
			t.Error(r)
		}
		contains(t, r.stderr, "drain the node")
	})
	t.Run("taken out of service", func(t *testing.T) {
		if r := m.run("down", "--purge"); r.code != 0 {
			t.Fatal(r)
		}
		if left := given(); len(left) > 0 {
			t.Errorf("given out: %v", left)
		}
		if out, _, err := c.from(server.netns, m.ip.String()+":8888", "/"); err == nil {
			t.Errorf("the host port answers: %q", out)
		}
	})
}
