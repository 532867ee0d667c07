package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestNet: `gitk8s net` says what the nodes' kernels do, from the API and from the
// kernels themselves.
func TestNet(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "net")
	c.apply(t, ns, servicePods)
	pods := c.awaitPods(t, ns, "app=web", "both are ready", func(p []*corev1.Pod) bool { return len(p) == 2 && ready(p[0]) && ready(p[1]) })
	c.awaitPod(t, ns, "only", "it is ready", ready)
	c.apply(t, ns, `apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}
`)
	endpoints := []string{pods[0].Status.PodIP + ":8080", pods[1].Status.PodIP + ":8080"}
	slices.Sort(endpoints)
	address := c.service(t, ns, "web").Spec.ClusterIP + ":80"
	eventually(t, "both kernels lead to both pods", func() error {
		var routes []struct {
			Address, Kernel  string
			Endpoints, Nodes []string
		}
		if err := json.Unmarshal([]byte(c.ok(t, "net", "services", "web", "-n", ns, "-o", "json")), &routes); err != nil {
			return err
		}
		if len(routes) != 1 || routes[0].Kernel != "in place" || routes[0].Address != address+"/TCP" || len(routes[0].Nodes) != 2 || !slices.Equal(routes[0].Endpoints, endpoints) {
			return fmt.Errorf("%+v", routes)
		}
		return nil
	})
	contains(t, c.ok(t, "net", "services", "-A", "--node", "worker-1"), "kube-system/kube-dns:dns", "the node answers itself", "default/kubernetes:https", "in place")
	eventually(t, "both nodes enforce the policy", func() error {
		if got := c.ok(t, "net", "policies", "-n", ns); strings.Count(got, "anywhere 8080/TCP  yes") != 2 || strings.Contains(got, ns+"/only") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	contains(t, c.ok(t, "net", "trace", "-n", ns, "only", "web:80"), ns+"/web at "+address+": allowed", "allowed by "+ns+"/web spec.ingress[0]")
	contains(t, c.ok(t, "net", "trace", "-n", ns, "only", pods[0].Name+":9090"), "denied", "none of them allows it")

	// The worker's own answers, as with Kubernetes' kubelet.
	contains(t, c.kubectl(t, "get", "--raw", "/api/v1/nodes/worker-1/proxy/metrics"), "kubelet_running_pods")
	contains(t, c.kubectl(t, "get", "--raw", "/api/v1/nodes/worker-1:10250/proxy/pods"), `"only"`)
	for path, want := range map[string]string{"worker-1:22/proxy/pods": "only the worker's own port", "worker-9/proxy/pods": `nodes "worker-9" not found`} {
		if r := c.run("kubectl", "get", "--raw", "/api/v1/nodes/"+path); r.code == 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %+v", path, r)
		}
	}
}
