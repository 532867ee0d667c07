package network

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestPinNode: the namespace of a worker may be that of a process, also one with a user
// namespace of its own, and of another one later.
func TestPinNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	c := &cluster{t: t, ranges: rangesIPv4, id: fmt.Sprintf("t%d-%d", os.Getpid(), count.Add(1)), dir: t.TempDir()}
	t.Cleanup(c.destroy)
	if err := EnsureHub(c.id, c.ranges); err != nil {
		t.Fatal(err)
	}
	if err := PinNode(c.id, "hub", os.Getpid()); err == nil {
		t.Error("a process has become the hub")
	}
	for range 2 {
		cmd := exec.Command("sleep", "infinity")
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		var node Node
		for range 2 { // a second time changes nothing
			if err := PinNode(c.id, "node-1", cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
			var err error
			if node, err = EnsureNode(c.id, "node-1", 1, c.ranges); err != nil {
				t.Fatal(err)
			}
		}
		at := netip.AddrPortFrom(node.IPs[0], 8080)
		c.serve(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), at, "node-1")
		if got := ask(HubNetNS(c.id), "tcp", at); got != "node-1 "+hubIP.String() {
			t.Errorf("from the hub: %q", got)
		}
	}
}
