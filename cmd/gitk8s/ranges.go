package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	clientv3 "go.etcd.io/etcd/client/v3"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/controllers/nodeipam"
	"gitk8s.dev/gitk8s/runtime/network"
)

// The flags that say which addresses a cluster has.
const (
	podsFlag     = "cluster-cidr"
	servicesFlag = "service-cidr"
	nodesFlag    = "node-network-cidr"
)

// What they are unless told otherwise; the nodes' network has those of the cluster's
// families.
const (
	defaultPods      = "10.42.0.0/16"
	defaultServices  = "10.43.0.0/16"
	defaultNodesIPv4 = "10.41.0.0/24"
	defaultNodesIPv6 = "fd00:10:41::/64"
)

func rangeFlags(f *pflag.FlagSet) {
	f.String(podsFlag, defaultPods, "addresses of pods: a range, or one of IPv4 and one of IPv6 with a comma between")
	f.String(servicesFlag, defaultServices, "addresses of services, of the same families")
}

func nodesRangeFlag(f *pflag.FlagSet) {
	f.String(nodesFlag, "", fmt.Sprintf("addresses of the nodes, which are in a network of their own, of the same families (default: %s, %s)", defaultNodesIPv4, defaultNodesIPv6))
}

// rangeRule is what a range may be, by its family.
type rangeRule struct {
	flag  string
	sizes map[bool][2]int // by "is IPv6": the shortest and the longest prefix
	why   string
}

var rangeRules = []rangeRule{
	{podsFlag, map[bool][2]int{
		false: {nodeipam.BitsIPv4 - 16, nodeipam.BitsIPv4}, true: {nodeipam.BitsIPv6 - 16, nodeipam.BitsIPv6},
	}, fmt.Sprintf("each node gets a /%d of IPv4 and a /%d of IPv6", nodeipam.BitsIPv4, nodeipam.BitsIPv6)},
	{servicesFlag, map[bool][2]int{
		false: {32 - apiserver.MaxServiceBits, 28}, true: {128 - apiserver.MaxServiceBits, 124},
	}, "it is for the addresses of services alone"},
	{nodesFlag, map[bool][2]int{false: {16, 24}, true: {64, 120}}, "it has an address for each node"},
}

// parseRanges reads the three flags; nodes is empty where nodes have the addresses of
// their machines.
func parseRanges(pods, services, nodes string) (network.Ranges, error) {
	var r network.Ranges
	lists := []*[]netip.Prefix{&r.Pods, &r.Services, &r.Nodes}
	for i, text := range []string{pods, services, nodes} {
		if i == 2 && text == "" {
			break
		}
		list, err := parseRangeList(text, rangeRules[i])
		if err != nil {
			return r, usageError("--%s: %w", rangeRules[i].flag, err)
		}
		*lists[i] = list
	}
	isIPv6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	sameFamilies := func(a, b []netip.Prefix) bool {
		return slices.EqualFunc(a, b, func(a, b netip.Prefix) bool { return isIPv6(a) == isIPv6(b) })
	}
	if !sameFamilies(r.Pods, r.Services) {
		return r, usageError("--%s %s is not of the same families, in the same order, as --%s %s", servicesFlag, services, podsFlag, pods)
	}
	if nodes != "" {
		if len(r.Nodes) > 1 && isIPv6(r.Nodes[0]) != isIPv6(r.Pods[0]) {
			slices.Reverse(r.Nodes)
		}
		if !sameFamilies(r.Pods, r.Nodes) {
			return r, usageError("--%s %s is not of the same families as --%s %s", nodesFlag, nodes, podsFlag, pods)
		}
	}
	type named struct {
		flag string
		netip.Prefix
	}
	var all []named
	for i, list := range lists {
		for _, p := range *list {
			for _, other := range all {
				if other.Overlaps(p) {
					return r, usageError("--%s %s overlaps --%s %s", rangeRules[i].flag, p, other.flag, other.Prefix)
				}
			}
			all = append(all, named{rangeRules[i].flag, p})
		}
	}
	return r, nil
}

func parseRangeList(text string, rule rangeRule) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is no range of addresses such as %s", part, defaultPods)
		}
		a := p.Addr()
		sizes := rule.sizes[a.Is6()]
		switch {
		case p != p.Masked():
			return nil, fmt.Errorf("%s has bits set after the first %d; is %s meant?", p, p.Bits(), p.Masked())
		case a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return nil, fmt.Errorf("%s has another meaning on every machine", p)
		case p.Bits() > sizes[1]:
			return nil, fmt.Errorf("%s is too small, a /%d is the least: %s", p, sizes[1], rule.why)
		case p.Bits() < sizes[0]:
			return nil, fmt.Errorf("%s is too large, a /%d is the most: %s", p, sizes[0], rule.why)
		case len(out) == 1 && out[0].Addr().Is6() == a.Is6():
			return nil, fmt.Errorf("%s and %s are of one family; one of each may be given", out[0], p)
		case len(out) == 2:
			return nil, errors.New("more than two ranges")
		}
		out = append(out, p)
	}
	return out, nil
}

// ranges are those of a server; withNodes if its nodes are in a network of their own.
func (c Config) ranges(withNodes bool) (network.Ranges, error) {
	nodes := ""
	if withNodes {
		if nodes = c.NodeNetworkCIDR; nodes == "" {
			for part := range strings.SplitSeq(c.ClusterCIDR, ",") {
				p := defaultNodesIPv4
				if strings.Contains(part, ":") {
					p = defaultNodesIPv6
				}
				nodes += "," + p
			}
			nodes = nodes[1:]
		}
	}
	return parseRanges(c.ClusterCIDR, c.ServiceCIDR, nodes)
}

// advertisesFirst: the API's own service has the first family, and its endpoint must be of
// the same.
func advertisesFirst(c Config, r network.Ranges) error {
	ip, err := netip.ParseAddr(c.advertised())
	if err == nil && ip.Unmap().Is6() != r.Services[0].Addr().Is6() {
		return usageError("this server is reached at %s, which is not of the family of %s, the first range of --%s: add an --advertise-address that is, or put the other range first in --%s and --%s",
			ip, r.Services[0], servicesFlag, podsFlag, servicesFlag)
	}
	return nil
}

// joinRanges is the value of a flag for ranges.
func joinRanges(list []netip.Prefix) string {
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// rangesKey holds the ranges of the cluster in the store.
const rangesKey = "/gitk8s/ranges"

// sameRanges makes sure that a cluster has the ranges that it was begun with: its nodes,
// pods and services have addresses of those. A cluster that is older than their being
// remembered has the defaults.
func sameRanges(ctx context.Context, store *clientv3.Client, r network.Ranges) error {
	begun, err := begunRanges(ctx, store, r)
	if err != nil {
		return fmt.Errorf("compare the cluster's addresses with those in etcd: %w", err)
	}
	for _, c := range []struct {
		flag       string
		was, wants []netip.Prefix
	}{{podsFlag, begun.Pods, r.Pods}, {servicesFlag, begun.Services, r.Services}, {nodesFlag, begun.Nodes, r.Nodes}} {
		if !slices.Equal(c.was, c.wants) && len(c.was) > 0 && len(c.wants) > 0 {
			return fmt.Errorf("this cluster was begun with --%s=%s, which nodes, pods and services have addresses of, and cannot have %s: "+
				"start it with the former, or begin another cluster in another --data-dir (`gitk8s down --purge` removes this one)", c.flag, joinRanges(c.was), joinRanges(c.wants))
		}
	}
	return nil
}

// begunRanges are those of the cluster, which are r if it begins now.
func begunRanges(ctx context.Context, store *clientv3.Client, r network.Ranges) (network.Ranges, error) {
	older, err := store.Get(ctx, "/gitk8s/clusterips/", clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return r, err
	}
	first := r
	if len(older.Kvs) > 0 { // unless remembered
		if first, err = parseRanges(defaultPods, defaultServices, defaultNodesIPv4); err != nil {
			return r, err
		}
	}
	text, err := json.Marshal(first)
	if err != nil {
		return r, err
	}
	resp, err := store.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(rangesKey), "=", 0)).
		Then(clientv3.OpPut(rangesKey, string(text))).
		Else(clientv3.OpGet(rangesKey)).Commit()
	if err != nil || resp.Succeeded {
		return first, err
	}
	var begun network.Ranges
	return begun, json.Unmarshal(resp.Responses[0].GetResponseRange().Kvs[0].Value, &begun)
}

// parseNodeIPs reads the addresses of a node: one, or one of each family with a comma
// between. They are put in the order of the cluster's families, of each of which there
// must be one.
func parseNodeIPs(text string, r network.Ranges) ([]netip.Addr, error) {
	var given, out []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		ip, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address", part)
		}
		if network.Same(ip, given).IsValid() {
			return nil, fmt.Errorf("%s has two addresses of one family", text)
		}
		given = append(given, ip)
	}
	for _, p := range r.Pods {
		ip := network.Same(p.Addr(), given)
		if !ip.IsValid() {
			family := "IPv4"
			if p.Addr().Is6() {
				family = "IPv6"
			}
			return nil, fmt.Errorf("%s has no %s address, which pods with addresses of %s need to be reached; give both, with a comma between", text, family, p)
		}
		out = append(out, ip)
	}
	return out, nil
}

func joinAddrs(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}
