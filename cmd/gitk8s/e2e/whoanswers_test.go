package e2e

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// whoAnswers: which of a Service's pods is asked, as "Virtual IPs and Service Proxies" in
// Kubernetes' documentation has it.
func whoAnswers(t *testing.T, c *cluster, k tool, ns string) {
	one, two := network.NodeNetNS(c.id(), "worker-1"), network.NodeNetNS(c.id(), "worker-2")
	at := func(name string) string { return c.service(t, ns, name).Spec.ClusterIP + ":80" }
	// who asks again and again, and says who answered.
	who := func(from, at string) []string {
		t.Helper()
		names := map[string]bool{}
		for range 20 {
			body, _, err := c.from(from, at, "/client")
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(body, " ")
			names[name] = true
		}
		return slices.Sorted(maps.Keys(names))
	}
	on := map[string]string{} // node → pod
	for _, p := range c.awaitPods(t, ns, "app=web", "both are there", func(p []*corev1.Pod) bool { return len(p) == 2 }) {
		on[p.Spec.NodeName] = p.Name
	}

	t.Run("any", func(t *testing.T) {
		c.apply(t, ns, "apiVersion: v1\nkind: Service\nmetadata: {name: any}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n")
		c.asks(t, "the service", one, at("any"), "web-")
		eventually(t, "both answer", func() error {
			if got := who(one, at("any")); len(got) != 2 {
				return fmt.Errorf("%s do", got)
			}
			return nil
		})
	})
	t.Run("sessionAffinity", func(t *testing.T) {
		c.apply(t, ns, "apiVersion: v1\nkind: Service\nmetadata: {name: sticky}\nspec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}\n")
		c.asks(t, "the service", one, at("sticky"), "web-")
		c.asks(t, "the service", two, at("sticky"), "web-")
		for _, from := range []string{one, two} {
			if got := who(from, at("sticky")); len(got) != 1 {
				t.Errorf("a client is answered by %s", got)
			}
		}
		contains(t, k.run(t, "describe", "service", "sticky"), "Session Affinity:", "ClientIP")
	})
	t.Run("internalTrafficPolicy", func(t *testing.T) {
		c.apply(t, ns, "apiVersion: v1\nkind: Service\nmetadata: {name: near}\nspec: {selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}\n"+
			"---\napiVersion: v1\nkind: Service\nmetadata: {name: near-only}\nspec: {selector: {app: only}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}\n")
		for from, node := range map[string]string{one: "worker-1", two: "worker-2"} {
			c.asks(t, "the service", from, at("near"), on[node]+" ")
			if got := who(from, at("near")); !slices.Equal(got, []string{on[node]}) {
				t.Errorf("on %s %s answer", node, got)
			}
		}
		c.asks(t, "where the pod is", one, at("near-only"), "only ")
		contains(t, c.inPod(t, ns, "only", "fetch", "http://"+at("near-only")+"/client"), "only ")
		if body, _, err := c.from(two, at("near-only"), "/client"); err == nil {
			t.Errorf("where no pod is: %s", body)
		}
	})
	t.Run("publishNotReadyAddresses", func(t *testing.T) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {app: unready}}
spec:
  hostname: unready
  subdomain: early
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "gitk8s.local/test/web:v1", env: [{name: READY, value: never}], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {selector: {app: unready}, publishNotReadyAddresses: true, clusterIP: None, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: early-ip}
spec: {selector: {app: unready}, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: patient}
spec: {selector: {app: unready}, clusterIP: None, ports: [{port: 80, targetPort: 8080}]}
`)
		pod := c.awaitPod(t, ns, "unready", "it runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
		c.asks(t, "its service", two, at("early-ip"), "unready asked by")
		for _, name := range []string{"early", "unready.early"} {
			eventually(t, name+" has its address", func() error {
				r := c.run("kubectl", "exec", "-n", ns, "only", "--", "/server", "lookup", "ip4", name+"."+ns+".svc.cluster.local")
				if strings.TrimSpace(r.stdout) != pod.Status.PodIP {
					return errors.New(r.String())
				}
				return nil
			})
		}
		if r := c.run("kubectl", "exec", "-n", ns, "only", "--", "/server", "lookup", "ip4", "patient."+ns+".svc.cluster.local"); r.code == 0 {
			t.Errorf("one that waits for readiness: %s", r)
		}
	})
	t.Run("named target ports", func(t *testing.T) {
		const pod = `apiVersion: v1
kind: Pod
metadata: {name: named-%[1]s, labels: {app: named}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "gitk8s.local/test/web:v1", env: [{name: PORT, value: "%[1]s"}], ports: [{name: web, containerPort: %[1]s}], readinessProbe: {tcpSocket: {port: web}, periodSeconds: 1}}]
---
`
		c.apply(t, ns, fmt.Sprintf(pod, "8081")+fmt.Sprintf(pod, "8082")+
			"apiVersion: v1\nkind: Service\nmetadata: {name: named}\nspec: {selector: {app: named}, ports: [{name: a, port: 80, targetPort: web}, {name: b, port: 81, targetPort: 8082}]}\n")
		c.awaitPod(t, ns, "named-8081", "it is ready", ready)
		c.awaitPod(t, ns, "named-8082", "it is ready", ready)
		c.asks(t, "the service", one, at("named"), "named-")
		eventually(t, "each is asked at its own port", func() error {
			if got := who(one, at("named")); !slices.Equal(got, []string{"named-8081", "named-8082"}) {
				return fmt.Errorf("%s answer", got)
			}
			return nil
		})
		c.asks(t, "the other port", one, strings.TrimSuffix(at("named"), ":80")+":81", "named-8082 ")
	})
	// KEP-1669: where all that is left is ending, that is asked as long as it serves.
	t.Run("terminating", func(t *testing.T) {
		c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: last, labels: {app: last}}
spec: {terminationGracePeriodSeconds: 60, containers: [{name: c, image: "gitk8s.local/test/web:v1", lifecycle: {preStop: {sleep: {seconds: 50}}}, readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: last}
spec: {selector: {app: last}, ports: [{port: 80, targetPort: 8080}]}
`)
		c.asks(t, "the pod", two, at("last"), "last ")
		k.run(t, "delete", "pod", "last", "--wait=false")
		eventually(t, "it is known to end", func() error {
			out := k.run(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=last", "-o", "jsonpath={.items[*].endpoints[*].conditions}")
			if !strings.Contains(out, `"ready":false,"serving":true,"terminating":true`) {
				return errors.New(out)
			}
			return nil
		})
		if got := who(two, at("last")); !slices.Equal(got, []string{"last"}) {
			t.Error(got)
		}
		k.run(t, "delete", "pod", "last", "--grace-period=0", "--force")
		eventually(t, "nobody answers", func() error {
			if body, _, err := c.from(two, at("last"), "/client"); err == nil {
				return errors.New(body)
			}
			return nil
		})
		if _, err := c.k.CoreV1().Pods(ns).Get(t.Context(), "last", metav1.GetOptions{}); err == nil {
			t.Error("it is still there")
		}
	})
}
