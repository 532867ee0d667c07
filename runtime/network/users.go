package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	mobyuser "github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// userCount is how many users and groups a user namespace of a pod has.
const userCount = 1 << 16

// UserBase is the first user of the machine that belongs to the pod with an address, if
// it has users of its own. A /16, or 256 nodes' networks of a wider one, has as many
// addresses as there are such ranges, so that a range is as much a pod's own as its
// address is, and found again like it; the lowest one, with the users of the machine
// itself, goes with no pod's address. All addresses of a pod end alike.
func UserBase(ip netip.Addr) uint32 {
	return uint32(ending(ip)) << 16
}

// pinUserNetNS makes a user namespace and in it a network namespace, and pins the latter
// at the path. The calling thread must be locked, and end.
func pinUserNetNS(path string, base uint32) error {
	if err := hasUsers(base); err != nil {
		return err
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: userCount}}
	// A program with several threads cannot enter a user namespace. This child is
	// stopped before its first instruction and lives until its namespaces are pinned.
	child, err := os.StartProcess("/proc/self/exe", []string{"gitk8s-users"}, &os.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	source := fmt.Sprintf("/proc/%d/ns/net", child.Pid)
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	return inNetNS(path, loopbackUp)
}

// hasUsers says whether there are the users of a pod, in words for who runs gitk8s
// without root.
func hasUsers(base uint32) error {
	have, err := mobyuser.CurrentProcessUIDMap()
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	for _, m := range have {
		if int64(base) >= m.ID && int64(base)+userCount <= m.ID+m.Count {
			return nil
		}
	}
	return errors.New("hostUsers: false needs users to give to the pod, and this node runs as an ordinary user who has none: run gitk8s as root, or the pod without it")
}
