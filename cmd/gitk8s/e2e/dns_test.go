package e2e

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// databases are two pods, db-0 and db-1, with their service.
const databases = `apiVersion: v1
kind: Service
metadata: {name: dbs}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: dbs
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: db, image: "gitk8s.local/test/web:v1", ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]
`

// TestNames: services and pods by their names, from pods, as the DNS specification
// of Kubernetes says.
func TestNames(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "names")
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, databases+`---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.`+ns+`.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {clusterIP: None, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: onhost}
spec:
  terminationGracePeriodSeconds: 0
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{name: c, image: "gitk8s.local/test/web:v1", args: [sleep, 1h]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: [10.43.0.10], searches: [`+ns+`.svc.cluster.local], options: [{name: ndots, value: "2"}]}
  containers: [{name: c, image: "gitk8s.local/test/web:v1"}]
`)
	pods := c.running(t, ns, "app=db", "db-0=v1", "db-1=v1")
	for _, name := range []string{"client", "onhost", "own"} {
		c.awaitPod(t, ns, name, "it is ready", ready)
	}
	contains(t, k.run(t, "exec", "own", "--", "/server", "cat", "/etc/resolv.conf"), "nameserver 10.43.0.10\n", "options ndots:2")
	svc := k.run(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	zero, one := pods[0].Status.PodIP, pods[1].Status.PodIP
	// What is answered, and what the whole answer is.
	for _, q := range []struct{ from, kind, name, want string }{
		{"client", "host", "web", svc},
		{"client", "host", "web." + ns, svc},
		{"client", "host", "WEB." + ns + ".svc.cluster.local.", svc},
		{"onhost", "host", "web", svc},
		{"own", "host", "web", svc},
		{"client", "host", "alias", svc},
		{"client", "cname", "alias", "web." + ns + ".svc.cluster.local."},
		{"client", "host", "kubernetes.default", "10.43.0.1"},
		{"client", "host", "kube-dns.kube-system", "10.43.0.10"},
		{"client", "host", "db-1.dbs", one},
		{"client", "srv", "_http._tcp.web." + ns + ".svc.cluster.local", "web." + ns + ".svc.cluster.local.:80"},
		{"client", "srv", "_http._tcp.dbs." + ns + ".svc.cluster.local", "db-0.dbs." + ns + ".svc.cluster.local.:8080 db-1.dbs." + ns + ".svc.cluster.local.:8080"},
		{"client", "ptr", svc, "web." + ns + ".svc.cluster.local."},
		{"client", "ptr", zero, "db-0.dbs." + ns + ".svc.cluster.local."},
		{"client", "txt", "dns-version.cluster.local", "1.1.0"},
		{"client", "host", strings.ReplaceAll(zero, ".", "-") + "." + ns + ".pod.cluster.local", zero},
	} {
		eventually(t, q.from+" looks up "+q.name, func() error {
			r := k.try("", "exec", q.from, "--", "/server", "lookup", q.kind, q.name)
			if strings.TrimSpace(r.stdout) != q.want {
				return errors.New(r.String())
			}
			return nil
		})
	}
	if got := strings.Fields(k.run(t, "exec", "client", "--", "/server", "lookup", "host", "dbs")); len(got) != 2 || !strings.Contains(strings.Join(got, " "), zero) || !strings.Contains(strings.Join(got, " "), one) {
		t.Errorf("the headless service is %q, not %s and %s", got, zero, one)
	}
	for _, name := range []string{"nothing", "empty", "db-7.dbs", "web.nowhere", "example.com"} {
		if r := k.try("", "exec", "client", "--", "/server", "lookup", "host", name); r.code == 0 {
			t.Errorf("%s: %s", name, r)
		}
	}
	contains(t, k.run(t, "exec", "client", "--", "/server", "fetch", "http://web/"), "db-")
	contains(t, k.run(t, "exec", "client", "--", "/server", "fetch", "http://db-0.dbs:8080/"), "db-0")

	// A pod that has gone has no name any more, and one that is not ready neither.
	k.run(t, "scale", "statefulset", "db", "--replicas=1")
	awaitGone(t, c, corev1.SchemeGroupVersion.WithResource("pods"), ns, "db-1")
	eventually(t, "db-1 has no name", func() error {
		if r := k.try("", "exec", "client", "--", "/server", "lookup", "host", "db-1.dbs"); r.code == 0 || !strings.Contains(r.stderr, "no such host") {
			return errors.New(r.String())
		}
		return nil
	})
	contains(t, k.run(t, "get", "service", "-n", "kube-system", "kube-dns"), "10.43.0.10", "53/UDP,53/TCP")
}
