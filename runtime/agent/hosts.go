package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/network"
)

// hostname is the pod's, at most 63 characters as the kernel and DNS allow.
func hostname(pod *v1.Pod) string {
	h := pod.Name
	if pod.Spec.Hostname != "" {
		h = pod.Spec.Hostname
	}
	if len(h) > 63 {
		h = strings.TrimRight(h[:63], "-.")
	}
	return h
}

// kernelHostname is the name that the pod's processes get from the kernel: the
// hostname, or with setHostnameAsFQDN (KEP-1797) the whole name.
func kernelHostname(pod *v1.Pod, domain string) (string, error) {
	h := hostname(pod)
	if !isTrue(pod.Spec.SetHostnameAsFQDN) || pod.Spec.Subdomain == "" {
		return h, nil
	}
	const most = 64 // as the kernel has it
	fqdn := fmt.Sprintf("%s.%s.%s.svc.%s", h, pod.Spec.Subdomain, pod.Namespace, domain)
	if len(fqdn) > most {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, most, len(fqdn))
	}
	return fqdn, nil
}

// pidNamespace is what the pod says about whose processes its containers see.
func pidNamespace(pod *v1.Pod) container.PIDNamespace {
	switch {
	case pod.Spec.HostPID:
		return container.PIDHost
	case isTrue(pod.Spec.ShareProcessNamespace):
		return container.PIDPod
	}
	return container.PIDContainer
}

// ownUsers says that the pod's users are not those of the machine (KEP-127).
func ownUsers(pod *v1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// makeNetworkAndSandbox makes the pod's network and its sandbox and returns the
// pod's addresses.
func (w *worker) makeNetworkAndSandbox(ctx context.Context, pod *v1.Pod) ([]netip.Addr, error) {
	ips := w.a.cfg.NodeIPs
	cfg := container.SandboxConfig{
		ID: w.uid, Namespace: pod.Namespace, Name: pod.Name,
		CgroupParent: w.a.cfg.CgroupParent,
		Resources:    podResources(pod),
		PIDNamespace: pidNamespace(pod),
		HostIPC:      pod.Spec.HostIPC,
		Sysctls:      sysctls(pod),
	}
	if !pod.Spec.HostNetwork {
		if m, ok := w.a.cfg.Network.(portMapper); ok {
			m.MapPorts(w.uid, portMappings(pod))
		}
		var err error
		if cfg.NetNS, ips, err = w.a.cfg.Network.Setup(ctx, w.uid, pod.Namespace, pod.Name, ownUsers(pod)); err != nil {
			return ips, fmt.Errorf("set up pod network: %w", err)
		}
		if err := w.enforcePolicies(pod, ips); err != nil {
			return ips, err
		}
		if ownUsers(pod) {
			cfg.UserBase = network.UserBase(ips[0])
		}
		if cfg.Hostname, err = kernelHostname(pod, w.a.cfg.ClusterDomain); err != nil {
			return ips, err
		}
	}
	if err := w.a.cfg.Runtime.RunSandbox(ctx, cfg); err != nil {
		return ips, fmt.Errorf("run sandbox: %w", err)
	}
	return ips, nil
}

// enforcePolicies holds the pod to the NetworkPolicies before anything of it runs. What
// an earlier agent has started goes on as that one left it, also without the API.
func (w *worker) enforcePolicies(pod *v1.Pod, ips []netip.Addr) error {
	policies := w.a.cfg.Policies
	switch {
	case policies == nil:
		return nil
	case slices.Equal(w.adopted, ips):
		policies.Runs(pod, ips)
		return nil
	}
	return policies.Starts(pod, ips)
}

// sharedFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf of a pod and
// says how to mount them.
func (w *worker) sharedFiles(pod *v1.Pod, ips []netip.Addr) ([]container.Mount, error) {
	dir := w.a.podDir(w.uid)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make pod directory: %w", err)
	}
	node, err := os.ReadFile(w.a.cfg.ResolvConf)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the node's resolver configuration: %w", err)
	}
	resolv := resolvConf(pod, parseResolvConf(node), w.a.cfg.ClusterDNS, w.a.cfg.ClusterDomain)
	files := []struct {
		name, target string
		data         []byte
	}{
		{"resolv.conf", "/etc/resolv.conf", resolv.bytes()},
	}
	if pod.Spec.HostNetwork {
		data, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the node's hosts file: %w", err)
		}
		files = append(files, struct {
			name, target string
			data         []byte
		}{"etc-hosts", "/etc/hosts", append(data, aliasLines(pod)...)})
	} else {
		files = append(files, []struct {
			name, target string
			data         []byte
		}{
			{"etc-hosts", "/etc/hosts", hostsFile(pod, ips, w.a.cfg.ClusterDomain)},
			{"hostname", "/etc/hostname", []byte(hostname(pod) + "\n")},
		}...)
	}
	var mounts []container.Mount
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, f.data) {
			// Written in place, not by rename: running containers have the file mounted.
			if err := os.WriteFile(path, f.data, 0o644); err != nil {
				return nil, fmt.Errorf("write %s of the pod: %w", f.target, err)
			}
		}
		mounts = append(mounts, container.Mount{Source: path, Target: f.target})
	}
	return mounts, nil
}

// hostsFile is a pod's /etc/hosts.
func hostsFile(pod *v1.Pod, ips []netip.Addr, domain string) []byte {
	var b bytes.Buffer
	b.WriteString("# Kubernetes-managed hosts file.\n" +
		"127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	h := hostname(pod)
	for _, ip := range ips {
		if pod.Spec.Subdomain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s.%s.svc.%s\t%s\n", ip, h, pod.Spec.Subdomain, pod.Namespace, domain, h)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, h)
		}
	}
	b.Write(aliasLines(pod))
	return b.Bytes()
}

func aliasLines(pod *v1.Pod) []byte {
	if len(pod.Spec.HostAliases) == 0 {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range pod.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.Bytes()
}

// resolver is the content of a resolv.conf.
type resolver struct {
	servers, searches, options []string
}

func parseResolvConf(data []byte) resolver {
	var r resolver
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search":
			r.searches = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// resolvConf follows "Pod's DNS Policy" and "Pod's DNS Config" in the Kubernetes
// documentation.
func resolvConf(pod *v1.Pod, node resolver, clusterDNS []string, domain string) resolver {
	var r resolver
	policy := pod.Spec.DNSPolicy
	clusterFirst := policy == v1.DNSClusterFirstWithHostNet || (policy == v1.DNSClusterFirst || policy == "") && !pod.Spec.HostNetwork
	switch {
	case policy == v1.DNSNone:
	case clusterFirst && len(clusterDNS) > 0:
		r.servers = clusterDNS
		r.searches = append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, node.searches...)
		r.options = []string{"ndots:5"}
	default:
		r = node
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.servers = unique(append(append([]string(nil), r.servers...), c.Nameservers...))
		r.searches = unique(append(append([]string(nil), r.searches...), c.Searches...))
		r.options = mergeOptions(r.options, c.Options)
	}
	return r
}

func mergeOptions(base []string, add []v1.PodDNSConfigOption) []string {
	values := map[string]string{}
	var order []string
	put := func(name, text string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = text
	}
	for _, o := range base {
		name, _, _ := strings.Cut(o, ":")
		put(name, o)
	}
	for _, o := range add {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		put(o.Name, text)
	}
	out := make([]string, 0, len(order))
	for _, n := range order {
		out = append(out, values[n])
	}
	return out
}

func unique(list []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func (r resolver) bytes() []byte {
	var b bytes.Buffer
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.Bytes()
}
