package shim

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	mobyuser "github.com/moby/sys/user"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// idSpace is which users and groups there are: not all in a user namespace, and in
// that of an ordinary user without subordinate ids only one, who is 0 in it.
type idSpace struct {
	uids, gids []mobyuser.IDMap
	noGroups   bool // nobody may have supplemental groups (user_namespaces(7), setgroups)
}

func readIDSpace() (s idSpace) {
	// Without user namespaces in the kernel there are no maps, and all ids.
	s.uids, _ = mobyuser.CurrentProcessUIDMap()
	s.gids, _ = mobyuser.CurrentProcessGIDMap()
	b, err := os.ReadFile("/proc/self/setgroups")
	s.noGroups = err == nil && string(bytes.TrimSpace(b)) == "deny"
	return s
}

// has says whether an id is in a map.
func has(maps []mobyuser.IDMap, id int) bool {
	return len(maps) == 0 || slices.ContainsFunc(maps, func(m mobyuser.IDMap) bool {
		return int64(id) >= m.ID && int64(id) < m.ID+m.Count
	})
}

// check refuses a user whom the kernel would refuse, in words that say why. Where
// nobody may have supplemental groups they are left out: what they would open is the
// user's own anyway.
func (s idSpace) check(u user) error {
	refuse := func(what string, id int, maps []mobyuser.IDMap) error {
		if len(maps) == 1 && maps[0].Count == 1 {
			return fmt.Errorf("container has %s %d, and this node runs as an ordinary user who has only one id, 0 in containers: run the container as user 0, or see `gitk8s check` for how to have more", what, id)
		}
		var last int64
		for _, m := range maps {
			last = max(last, m.ID+m.Count-1)
		}
		return fmt.Errorf("container has %s %d, and this node runs in a user namespace without that id; the last one in it is %d", what, id, last)
	}
	switch {
	case !has(s.uids, u.uid):
		return refuse("runAsUser", u.uid, s.uids)
	case !has(s.gids, u.gid):
		return refuse("runAsGroup", u.gid, s.gids)
	case s.noGroups:
		return nil
	}
	for _, g := range u.groups {
		if !has(s.gids, g) {
			return refuse("the supplemental group", g, s.gids)
		}
	}
	return nil
}

// restrict takes from a container's configuration what can't be had in a user
// namespace: groups that are not there, and file systems of namespaces that belong to
// the machine.
func restrict(config *configs.Config, s container.SandboxConfig, at paths, ids idSpace) {
	config.Mounts = slices.DeleteFunc(config.Mounts, func(m *configs.Mount) bool { return m.Device == "mqueue" && s.HostIPC })
	for _, m := range config.Mounts {
		switch {
		case m.Device == "devpts" && !has(ids.gids, ttyGroup):
			m.Data = strings.TrimSuffix(m.Data, fmt.Sprintf(",gid=%d", ttyGroup))
		case m.Device == "proc" && at.pidNS.host:
			m.Source, m.Device, m.Flags = "/proc", "bind", unix.MS_BIND|unix.MS_REC
		}
	}
}

// withoutCgroups makes a container that is in no cgroup of its own.
func withoutCgroups(config *configs.Config, s container.SandboxConfig, c container.ContainerConfig) {
	config.RootlessCgroups = true
	config.Cgroups = &cgroups.Cgroup{
		Name: "gitk8s-" + s.ID + "-" + c.ID, Rootless: true,
		Resources: &cgroups.Resources{Devices: config.Cgroups.Resources.Devices},
	}
	// Nothing in it would be the container's own.
	config.Mounts = slices.DeleteFunc(config.Mounts, func(m *configs.Mount) bool { return m.Device == "cgroup" })
}
