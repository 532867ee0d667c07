package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	mobyuser "github.com/moby/sys/user"
)

// idsFile has the ids of an ordinary user's cluster: the files of its images and
// volumes belong to them, so it keeps those that it was begun with.
const idsFile = "ids"

// idMaps are the users and groups of a user namespace; 0 is who made it.
type idMaps struct {
	Users, Groups []syscall.SysProcIDMap
}

// oneID is what every user may have.
func oneID(uid, gid int) idMaps {
	return idMaps{
		Users:  []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		Groups: []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}},
	}
}

// withSubordinate adds a user's subordinate ids (subuid(5), subgid(5)), one range
// after the other, from 1 on.
func (m idMaps) withSubordinate(users, groups []mobyuser.SubID) idMaps {
	add := func(maps []syscall.SysProcIDMap, ranges []mobyuser.SubID) []syscall.SysProcIDMap {
		next := 1
		for _, r := range ranges {
			maps = append(maps, syscall.SysProcIDMap{ContainerID: next, HostID: int(r.SubID), Size: int(r.Count)})
			next += int(r.Count)
		}
		return maps
	}
	return idMaps{add(slices.Clone(m.Users), users), add(slices.Clone(m.Groups), groups)}
}

func (m idMaps) several() bool { return len(m.Users) > 1 && len(m.Groups) > 1 }

func (m idMaps) String() string {
	last := func(maps []syscall.SysProcIDMap) int { l := maps[len(maps)-1]; return l.ContainerID + l.Size - 1 }
	return fmt.Sprintf("the users 0 to %d and the groups 0 to %d", last(m.Users), last(m.Groups))
}

// gone is the error that a cluster's ids can't be had any more.
func (m idMaps) gone(why error) error {
	return fmt.Errorf("this cluster was begun with %s, to whom its files belong, and now %w; give them back, or have root remove the data directory", m, why)
}

// availableIDs are those that this user may have; lack says why it is only one.
func availableIDs() (m idMaps, lack string) {
	m = oneID(os.Geteuid(), os.Getegid())
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return m, tool + " is missing, with which users get the ids that /etc/subuid and /etc/subgid give them; it is in the package uidmap"
		}
	}
	id := strconv.Itoa(os.Geteuid())
	u, err := user.LookupId(id)
	if err != nil {
		return m, "/etc/passwd does not have you, user " + id + ", to whom newuidmap then gives no more"
	}
	ranges := map[string][]mobyuser.SubID{}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		// One that can't be read gives nothing.
		ranges[file], _ = mobyuser.ParseSubIDFileFilter(file, func(s mobyuser.SubID) bool {
			return (s.Name == u.Username || s.Name == id) && s.Count > 0
		})
		if len(ranges[file]) == 0 {
			return m, file + " gives you no more; root can: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + u.Username
		}
	}
	return m.withSubordinate(ranges["/etc/subuid"], ranges["/etc/subgid"]), ""
}

// planIDs says which ids a cluster gets, and what to tell about them. begun are those
// that it was begun with; nil is a new one. lack is why no more than one is available.
func planIDs(begun *idMaps, available idMaps, lack string) (m idMaps, tell string, err error) {
	m = available
	if begun != nil {
		m = *begun
	}
	const alone = "containers run as user 0 alone, which is you, and have no other groups (supplementalGroups, fsGroup): "
	switch {
	case m.several() && lack != "":
		return m, "", m.gone(errors.New(lack))
	case m.several():
		return m, fmt.Sprintf("containers have %s; 0 is you", m), nil
	case lack != "":
		return m, alone + lack, nil
	case available.several():
		return m, alone + "this cluster was begun so; `gitk8s down --purge` and a new start give it those of /etc/subuid and /etc/subgid", nil
	}
	return m, alone + "no more are known", nil
}

// readIDs returns the ids that a cluster was begun with; nil if it was not begun.
func readIDs(dataDir string) (*idMaps, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, idsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m idMaps
	err = json.Unmarshal(b, &m)
	if err == nil && (len(m.Users) == 0 || len(m.Groups) == 0) {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("read which ids the cluster has, %s: %w", filepath.Join(dataDir, idsFile), err)
	}
	return &m, nil
}

// begunWith is readIDs for a user's data directory, where a cluster without the file
// was begun when there was but one id to have.
func begunWith(dataDir string) (*idMaps, error) {
	m, err := readIDs(dataDir)
	if err != nil || m != nil {
		return m, err
	}
	if _, err := os.Stat(filepath.Join(dataDir, "pki")); err == nil {
		one := oneID(os.Geteuid(), os.Getegid())
		return &one, nil
	}
	return nil, nil
}

func writeIDs(dataDir string, m idMaps) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dataDir, idsFile), append(b, '\n'), 0o600)
}

// errIDs is a failure to give a namespace its ids.
var errIDs = errors.New("the ids of /etc/subuid and /etc/subgid can't be had")

// giveIDs has newuidmap and newgidmap, which run with root's rights, give the ids to
// the user namespace of a process.
func giveIDs(pid int, m idMaps) error {
	for tool, maps := range map[string][]syscall.SysProcIDMap{"newuidmap": m.Users, "newgidmap": m.Groups} {
		args := []string{strconv.Itoa(pid)}
		for _, r := range maps {
			args = append(args, strconv.Itoa(r.ContainerID), strconv.Itoa(r.HostID), strconv.Itoa(r.Size))
		}
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s (%w)", errIDs, strings.TrimSpace(string(out)), err)
		}
	}
	return nil
}
