package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/runtime/network"
)

// digManifest has a StatefulSet with its service and others of every kind; three pods
// that the test deletes; and services whose endpoints the test writes.
const digManifest = databases + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}, {name: ask, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.dig.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: db.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: fleeting}
spec: {clusterIP: None, selector: {app: fleeting}, ports: [{name: http, port: 8080}]}
`

// endpointsOf writes the addresses of a service that has no selector.
func (c *cluster) endpointsOf(t *testing.T, ns, service string, family discoveryv1.AddressType, addresses ...string) {
	t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](80)}},
	}
	for i, a := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Hostname: ptr.To(fmt.Sprintf("host-%d", i))})
	}
	if _, err := c.k.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestDig asks the cluster's name server with dig, in the network namespaces of a pod
// and of a node: TestNames asks as programs do, which see little of the answers.
func TestDig(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("dig")
	if err != nil {
		missing(t, "dig")
	}
	c := suite.shared
	ns := c.namespace(t, "dig")
	c.apply(t, ns, digManifest)
	const fleeting = 3
	for i := range fleeting {
		c.apply(t, ns, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: fleeting-%d, labels: {app: fleeting}}
spec:
  hostname: fleeting-%[1]d
  subdomain: fleeting
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "gitk8s.local/test/web:v1"}]
`, i))
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("192.0.2.%d", i+1))
	}
	c.endpointsOf(t, ns, "many", discoveryv1.AddressTypeIPv4, many...)
	c.endpointsOf(t, ns, "six", discoveryv1.AddressTypeIPv6, "2001:db8::7")
	pods := c.running(t, ns, "app=db", "db-0=v1", "db-1=v1")
	gone := c.awaitPods(t, ns, "app=fleeting", "they are ready", func(p []*corev1.Pod) bool { return len(p) == fleeting && allReady(p) })
	zero, one := pods[0].Status.PodIP, pods[1].Status.PodIP
	svc := c.service(t, ns, "web").Spec.ClusterIP

	from := map[string]string{
		"a pod":  filepath.Join(c.dataDir, "nodes", pods[0].Spec.NodeName, "network", string(pods[0].UID)+".netns"),
		"a node": network.NodeNetNS(c.id(), "worker-2"),
	}
	dig := func(from string, args ...string) string {
		t.Helper()
		r := c.exec("", "", inNetNS(from, append([]string{program, "@10.43.0.10", "+time=5", "+tries=1", "+norecurse"}, args...))...)
		if r.code != 0 {
			return r.String()
		}
		return r.stdout
	}
	const zone = "dig.svc.cluster.local"
	for where, path := range from {
		eventually(t, where+" is told of all endpoints", func() error {
			for name, n := range map[string]int{"dbs": 2, "fleeting": fleeting, "many": len(many)} {
				if got := strings.Fields(dig(path, "+short", "+tcp", name+"."+zone, "A")); len(got) != n {
					return fmt.Errorf("%s: %q", name, got)
				}
			}
			if got := strings.Fields(dig(path, "+short", "six."+zone, "AAAA")); len(got) != 1 {
				return fmt.Errorf("six: %q", got)
			}
			return nil
		})
		// What an answer has: lines, with one space between their words, and parts of lines.
		for _, q := range []struct {
			args string
			want []string
		}{
			{"web." + zone + " A", []string{"status: NOERROR", "flags: qr aa", "web." + zone + ". 1 IN A " + svc}},
			{"WeB." + zone + " A", []string{"status: NOERROR", "WeB." + zone + ". 1 IN A " + svc}},
			{"web." + zone + " AAAA", []string{"status: NOERROR", "ANSWER: 0", "cluster.local. 1 IN SOA ns.dns.cluster.local."}},
			{"six." + zone + " AAAA", []string{"status: NOERROR", "six." + zone + ". 1 IN AAAA 2001:db8::7"}},
			{"-x 2001:db8::7", []string{"IN PTR host-0.six." + zone + "."}},
			{"db-1.dbs." + zone + " A", []string{"db-1.dbs." + zone + ". 1 IN A " + one}},
			{"db-7.dbs." + zone + " A", []string{"status: NXDOMAIN", "ANSWER: 0", "AUTHORITY: 1", "cluster.local. 1 IN SOA"}},
			{"nothing." + zone + " A", []string{"status: NXDOMAIN", "AUTHORITY: 1", "cluster.local. 1 IN SOA"}},
			{"_http._tcp.web." + zone + " SRV", []string{"IN SRV 0 100 80 web." + zone + ".", "web." + zone + ". 1 IN A " + svc}},
			{"_ask._udp.web." + zone + " SRV", []string{"IN SRV 0 100 53 web." + zone + "."}},
			{"_http._udp.web." + zone + " SRV", []string{"status: NXDOMAIN"}},
			{"_http._tcp.dbs." + zone + " SRV", []string{"ANSWER: 2", "IN SRV 0 100 8080 db-0.dbs." + zone + ".", "IN SRV 0 100 8080 db-1.dbs." + zone + ".", "db-0.dbs." + zone + ". 1 IN A " + zero}},
			{"-x " + svc, []string{"ANSWER: 1", "IN PTR web." + zone + "."}},
			{"-x " + zero, []string{"IN PTR db-0.dbs." + zone + "."}},
			{"-x 10.43.255.254", []string{"status: NXDOMAIN", "AUTHORITY: 1"}},
			{"alias." + zone + " A", []string{"ANSWER: 2", "alias." + zone + ". 1 IN CNAME web." + zone + ".", "web." + zone + ". 1 IN A " + svc}},
			{"alias." + zone + " CNAME", []string{"ANSWER: 1", "IN CNAME web." + zone + "."}},
			{"away." + zone + " A", []string{"away." + zone + ". 1 IN CNAME db.example.com."}},
			{"+tcp web." + zone + " A", []string{"web." + zone + ". 1 IN A " + svc, "(TCP)"}},
			{"+bufsize=4096 web." + zone + " A", []string{"; EDNS: version: 0, flags:; udp: 1232"}},
			{"+dnssec web." + zone + " A", []string{"; EDNS: version: 0, flags: do; udp: 1232", "IN A " + svc}},
			{"+noedns web." + zone + " A", []string{"ADDITIONAL: 0", "IN A " + svc}},
			{"+edns=1 +noednsnegotiation web." + zone + " A", []string{"status: BADVERS", "ANSWER: 0"}},
			// 100 addresses fit neither into 512 bytes nor into what we say we take.
			{"+noedns +ignore many." + zone + " A", []string{"flags: qr aa tc"}},
			{"+bufsize=4096 +ignore many." + zone + " A", []string{"flags: qr aa tc"}},
			{"+bufsize=4096 many." + zone + " A", []string{"Truncated, retrying in TCP mode.", "ANSWER: 100", "(TCP)"}},
			{"+tcp many." + zone + " A", []string{"flags: qr aa;", "ANSWER: 100"}},
			{"+tcp _http._tcp.many." + zone + " SRV", []string{"flags: qr aa;", "ANSWER: 100", "IN SRV 0 100 80 host-99.many." + zone + "."}},
			{"CH TXT version.bind", []string{"status: REFUSED"}},
		} {
			out := dig(path, strings.Fields(q.args)...)
			lines := strings.Join(strings.Fields(out), " ")
			for _, want := range q.want {
				if !strings.Contains(lines, want) {
					t.Errorf("dig %s from %s: %q is missing in:\n%s", q.args, where, want, out)
				}
			}
		}
		for args, most := range map[string]int{"+noedns": 512, "+bufsize=800": 800, "+bufsize=4096": 1232} {
			out := dig(path, args, "+ignore", "many."+zone, "A")
			var size int
			_, rest, _ := strings.Cut(out, "MSG SIZE  rcvd: ")
			if _, err := fmt.Sscan(rest, &size); err != nil || size > most || size < most-200 {
				t.Errorf("%s: an answer of %d bytes, at most %d: %v", args, size, most, err)
			}
		}
	}

	// An endpoint that is deleted is gone within a second, in the answers of both. One
	// of three may have been held up by the machine.
	var took []time.Duration
	for _, pod := range gone {
		name := pod.Name + ".fleeting." + zone
		begun := time.Now()
		if err := c.k.CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		for where, path := range from {
			eventually(t, where+" is told that "+pod.Name+" is gone", func() error {
				if out := dig(path, name, "A"); !strings.Contains(out, "status: NXDOMAIN") {
					return errors.New(out)
				}
				return nil
			})
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	t.Logf("gone after %v", took)
	if took[1] > time.Second {
		t.Errorf("deleted endpoints were answered for %v", took)
	}
}
