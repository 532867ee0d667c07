package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// withoutNFTables as the first argument of this program makes it run the others where the
// kernel has no nftables.
const withoutNFTables = "without-nftables"

// runWithoutNFTables becomes a program for which, and for all that it starts, the kernel
// answers as one that is built without netfilter's netlink: a filter refuses the socket.
func runWithoutNFTables(args []string) error {
	const (
		sysNumber = 0  // offsets in struct seccomp_data
		firstArg  = 16 // the lower half: the machine is little-endian
		thirdArg  = 32
	)
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	result := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	filter := []unix.SockFilter{
		load(sysNumber), unless(unix.SYS_SOCKET, 5),
		load(firstArg), unless(unix.AF_NETLINK, 3),
		load(thirdArg), unless(unix.NETLINK_NETFILTER, 1),
		result(unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)),
		result(unix.SECCOMP_RET_ALLOW),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("set the filter: %w", errno)
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}

// TestWithoutNFTables: on a kernel without nftables services are carried in user space,
// and pods that a policy selects do not start.
func TestWithoutNFTables(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster("without-nftables")
	c.under = []string{self, withoutNFTables}
	t.Cleanup(func() {
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	ns := c.namespace(t, "services")
	c.apply(t, ns, servicePods+`---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`)
	c.awaitPod(t, ns, "only", "it is ready", ready)
	c.awaitPods(t, ns, "app=web", "both are ready", func(p []*corev1.Pod) bool { return len(p) == 2 && ready(p[0]) && ready(p[1]) })
	at := c.service(t, ns, "web").Spec.ClusterIP
	eventually(t, "a pod reaches both endpoints by the service's name", func() error {
		seen := ""
		for range 10 {
			r := c.run("kubectl", "exec", "-n", ns, "only", "--", "/server", "fetch", "http://web/client")
			if r.code != 0 {
				return errors.New(r.stderr)
			}
			seen += r.stdout
		}
		if !strings.Contains(seen, "asked by "+nodeOne) || strings.Count(seen, "web-") != 10 {
			return errors.New(seen)
		}
		return nil
	})
	c.asks(t, "the machine", "", "127.0.0.1:30080", "web-")
	c.asks(t, "a node's port", network.HubNetNS(c.id()), nodeTwo+":30080", "web-")
	c.asks(t, "a node", network.NodeNetNS(c.id(), "worker-1"), at+":80", "web-")
	eventually(t, "it is said of the services", func() error {
		if got := c.ok(t, "net", "services", "web", "-n", ns); strings.Count(got, "worker-1,worker-2  in place") != 2 {
			return errors.New(got)
		}
		return nil
	})
	c.apply(t, ns, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guarded}
spec: {podSelector: {matchLabels: {app: guarded}}}
---
apiVersion: v1
kind: Pod
metadata: {name: guarded, labels: {app: guarded}}
spec: {nodeName: worker-1, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
`)
	c.eventOf(t, ns, "guarded", "FailedCreatePodSandBox", "network policies")
	contains(t, c.ok(t, "kubectl", "get", "pod", "-n", ns, "guarded"), "ContainerCreating")
}
