package shim

import (
	"fmt"
	"slices"
	"strings"

	mobyuser "github.com/moby/sys/user"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// oneID says whether only one user exists here: the user namespace of an ordinary
// user, who is 0 in it. Such a one has no cgroups of their own either.
func oneID() bool {
	m, err := mobyuser.CurrentProcessUIDMap()
	return err == nil && len(m) == 1 && m[0].Count == 1
}

// checkIDs refuses a user whom the kernel would refuse, in words that say why. More
// groups can't be had either, but they are only left out: what they would open is
// the user's own anyway.
func checkIDs(u user) error {
	const remedy = "this node runs as an ordinary user and has only one user id, 0 in containers: run gitk8s as root, or the container as user 0"
	switch {
	case u.uid != 0:
		return fmt.Errorf("container has runAsUser %d, and %s", u.uid, remedy)
	case u.gid != 0:
		return fmt.Errorf("container has runAsGroup %d, and %s", u.gid, remedy)
	}
	return nil
}

// restrict takes from a container's configuration what can't be had where only one
// user exists: cgroups, groups of terminals, and file systems of namespaces that
// belong to the machine.
func restrict(config *configs.Config, s container.SandboxConfig, c container.ContainerConfig, at paths) {
	config.RootlessCgroups = true
	config.Cgroups = &cgroups.Cgroup{
		Name: "gitk8s-" + s.ID + "-" + c.ID, Rootless: true,
		Resources: &cgroups.Resources{Devices: config.Cgroups.Resources.Devices},
	}
	config.Mounts = slices.DeleteFunc(config.Mounts, func(m *configs.Mount) bool {
		// Nothing in it would be the container's own.
		return m.Device == "cgroup" || m.Device == "mqueue" && s.HostIPC
	})
	for _, m := range config.Mounts {
		switch {
		case m.Device == "devpts":
			m.Data = strings.TrimSuffix(m.Data, ",gid=5")
		case m.Device == "proc" && at.pidNS.host:
			m.Source, m.Device, m.Flags = "/proc", "bind", unix.MS_BIND|unix.MS_REC
		}
	}
}
