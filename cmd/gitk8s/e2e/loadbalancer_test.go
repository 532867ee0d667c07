package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"gitk8s.dev/gitk8s/runtime/network"
)

// TestIPv6LoadBalancerPool: who is on the nodes' link reaches load balancers at the pool's
// addresses of both families, also when the node that announces them is to be used no more,
// and when it dies.
func TestIPv6LoadBalancerPool(t *testing.T) {
	t.Parallel()
	const pods4, pods6, services4, services6, nodes4, nodes6 = "10.62.0.0/16", "fd00:10:62::/56", "10.63.0.0/16", "fd00:10:63::/112", "10.61.0.0/24", "fd00:10:61::/64"
	c := ownCluster(t, "--cluster-cidr", pods4+","+pods6, "--service-cidr", services4+","+services6, "--node-network-cidr", nodes4+","+nodes6,
		"--load-balancer-pool", "fd00:10:61::f0-fd00:10:61::f3,10.61.0.240-10.61.0.243")
	ns := c.namespace(t, "pool")
	hub := network.HubNetNS(c.id())
	client, err := network.EnsureNode(c.id(), "client", 100, network.Ranges{Nodes: []netip.Prefix{netip.MustParsePrefix(nodes4), netip.MustParsePrefix(nodes6)}})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, strings.ReplaceAll(servicePods, "nodeName: worker-1", "nodeName: worker-2"))
	balancer := func(name, spec string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {type: LoadBalancer, selector: {app: only}, ports: [{port: 18476, targetPort: 8080}], " + spec + "}\n---\n"
	}
	c.apply(t, ns, balancer("both", "ipFamilyPolicy: RequireDualStack")+balancer("six", "ipFamilies: [IPv6], loadBalancerIP: 'fd00:10:61::f3'")+balancer("four", "ipFamilies: [IPv4]"))
	has := map[string]string{}
	for name, want := range map[string]int{"both": 2, "six": 1, "four": 1} {
		eventually(t, name+" has its addresses", func() error {
			var got []string
			for _, in := range c.service(t, ns, name).Status.LoadBalancer.Ingress {
				got = append(got, in.IP)
			}
			if has[name] = strings.Join(got, " "); len(got) != want {
				return fmt.Errorf("%q", has[name])
			}
			return nil
		})
	}
	if !strings.HasPrefix(has["both"], "10.61.0.24") || !strings.Contains(has["both"], " fd00:10:61::f") || has["six"] != "fd00:10:61::f3" || !strings.HasPrefix(has["four"], "10.61.0.24") {
		t.Errorf("%v", has)
	}
	reached := func(what string) {
		t.Helper()
		for _, name := range []string{"both", "six", "four"} {
			for _, ip := range strings.Fields(has[name]) {
				c.asks(t, what+", "+name, client.NetNS, netip.AddrPortFrom(netip.MustParseAddr(ip), 18476).String(), "only asked by")
			}
		}
	}
	announcer := func() string { return c.service(t, ns, "six").Annotations["gitk8s.dev/announced-by"] }
	leaves := func(node string) {
		t.Helper()
		eventually(t, "another node announces it", func() error {
			if now := announcer(); now == node || now == "" {
				return fmt.Errorf("%q does", now)
			}
			return nil
		})
	}
	reached("first")
	c.asks(t, "from the server", hub, "[fd00:10:61::f3]:18476", "only asked by")
	c.asks(t, "from the other node", network.NodeNetNS(c.id(), "worker-1"), "[fd00:10:61::f3]:18476", "only asked by")
	c.asks(t, "the machine's loopback", "", "127.0.0.1:18476", "only asked by")

	// Make sure that it is at the node without the pod, and have that one die.
	if announcer() == "worker-2" {
		c.kubectl(t, "label", "node", "worker-2", "node.kubernetes.io/exclude-from-external-load-balancers=")
		leaves("worker-2")
		reached("moved by a label")
		c.kubectl(t, "label", "node", "worker-2", "node.kubernetes.io/exclude-from-external-load-balancers-")
	}
	err = network.InNetNS(hub, func() error {
		port, err := netlink.LinkByName("node1")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(port)
	})
	if err != nil {
		t.Fatal(err)
	}
	leaves("worker-1")
	reached("its node has died")
}
