package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	mobyuser "github.com/moby/sys/user"

	"gitk8s.dev/gitk8s/runtime/network"
)

// Each worker of an ordinary user has a user namespace of its own, below that of the
// cluster and with all of its ids, and in it a mount and a network namespace: it has no
// rights over the hub, the other workers and their pods. A keeper has them, as the
// cluster's has those of all; who is in the cluster's has rights over all of them.

// keepWorker returns the process that keeps the namespaces of a worker, and starts it if
// need be; 0 for root, whose workers have a network namespace alone.
func (n *ownNodes) keepWorker(name string) (int, error) {
	if !isEntered() {
		return 0, nil
	}
	pid, err := n.ensureWorkerKeeper(name)
	if err == nil {
		err = network.PinNode(n.id, name, pid)
	}
	if err != nil {
		return 0, fmt.Errorf("namespaces of %s: %w", name, err)
	}
	return pid, nil
}

func (n *ownNodes) ensureWorkerKeeper(name string) (int, error) {
	dir := n.nodeDir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	lock, running, err := keeperOf(dir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if running {
		return readKeeper(lock.Name())
	}
	// Nobody gets at what is left of pods in namespaces that nobody keeps.
	if err := errors.Join(cleanPods(dir), network.DeleteNode(n.id, name)); err != nil {
		return 0, err
	}
	attr, err := sameIDs()
	if err != nil {
		return 0, err
	}
	attr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET
	cmd, err := keep(dir, lock, attr)
	if err != nil {
		return 0, err
	}
	go func() { _ = cmd.Wait() }()
	return cmd.Process.Pid, writePID(lock, cmd.Process.Pid)
}

// sameIDs gives a user namespace the ids that there are in this one, under the same
// numbers.
func sameIDs() (*syscall.SysProcAttr, error) {
	users, err := mobyuser.CurrentProcessUIDMap()
	if err != nil {
		return nil, err
	}
	groups, err := mobyuser.CurrentProcessGIDMap()
	if err != nil {
		return nil, err
	}
	setgroups, err := os.ReadFile("/proc/self/setgroups")
	if err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{
		UidMappings: identical(users), GidMappings: identical(groups),
		GidMappingsEnableSetgroups: strings.TrimSpace(string(setgroups)) == "allow",
	}, nil
}

// identical are maps of the same numbers. The kernel wants each range within one of those
// above.
func identical(maps []mobyuser.IDMap) (out []syscall.SysProcIDMap) {
	for _, m := range maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ID), HostID: int(m.ID), Size: int(m.Count)})
	}
	return out
}
