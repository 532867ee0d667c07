package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// machine is what belongs to the machine's own network and must not change.
type machine struct {
	links, tables []string
	err           error
}

func machineNow() machine {
	var m machine
	links, err := net.Interfaces()
	if err != nil {
		return machine{err: fmt.Errorf("list the network links: %w", err)}
	}
	for _, l := range links {
		m.links = append(m.links, l.Name)
	}
	if os.Geteuid() != 0 {
		return m // who may neither change the tables nor see them
	}
	c, err := nftables.New()
	if err != nil {
		return machine{err: fmt.Errorf("nftables: %w", err)}
	}
	tables, err := c.ListTables()
	if err != nil {
		return machine{err: fmt.Errorf("list the nftables tables: %w", err)}
	}
	for _, t := range tables {
		m.tables = append(m.tables, t.Name)
	}
	return m
}

// traces are by what something of one cluster is known.
type traces struct {
	data string // its data directory
	name string // what the names of its namespaces and cgroups contain
}

// tracesOf finds the name of the cluster of a data directory: it is in the names
// of the network namespaces, which root pins where iproute2 looks, and an ordinary
// user in the data directory. With root there may be others; a worker, a child of
// up, says which is ours.
func tracesOf(up int, data string) (traces, error) {
	pins := "/run/netns"
	if os.Geteuid() != 0 {
		pins = filepath.Join(data, "netns")
	}
	spaces, err := filepath.Glob(filepath.Join(pins, "gitk8s-*"))
	if err != nil {
		return traces{}, err
	}
	children, err := childrenOf(up)
	if err != nil {
		return traces{}, err
	}
	for _, s := range spaces {
		parts := strings.Split(filepath.Base(s), "-")
		if len(parts) > 2 && (os.Geteuid() != 0 || anyIn(children, s)) {
			return traces{data: data, name: parts[1]}, nil
		}
	}
	return traces{}, errors.New("found no worker in a network namespace of its own")
}

// anyIn says whether one of the processes is in a network namespace.
func anyIn(pids []int, pinned string) bool {
	var its, st unix.Stat_t
	if unix.Stat(pinned, &st) != nil {
		return false
	}
	return slices.ContainsFunc(pids, func(pid int) bool {
		// One that has ended is in none.
		return unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &its) == nil && its.Ino == st.Ino && its.Dev == st.Dev
	})
}

func childrenOf(pid int) ([]int, error) {
	var out []int
	err := eachProcess(func(p int, dir string) {
		b, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return
		}
		// The name in parentheses may hold anything, so count from its end.
		rest := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(rest) > 1 && rest[1] == strconv.Itoa(pid) {
			out = append(out, p)
		}
	})
	return out, err
}

// eachProcess calls f for every process but this one. Any may end meanwhile.
func eachProcess(f func(pid int, dir string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			f(pid, filepath.Join("/proc", e.Name()))
		}
	}
	return nil
}

// leftovers lists what a stopped cluster left on the machine.
func leftovers(before machine, t traces) ([]string, error) {
	now := machineNow()
	if err := errors.Join(before.err, now.err); err != nil {
		return nil, err
	}
	var left []string
	for _, l := range now.links {
		if !slices.Contains(before.links, l) {
			left = append(left, "network link "+l)
		}
	}
	for _, n := range now.tables {
		if !slices.Contains(before.tables, n) {
			left = append(left, "nftables table "+n)
		}
	}
	processes, err := t.processes()
	if err != nil {
		return nil, err
	}
	mounts, err := t.mounts()
	if err != nil {
		return nil, err
	}
	left = append(append(left, processes...), mounts...)
	for what, patterns := range map[string][]string{
		"network namespace": {"/run/netns/gitk8s-" + t.name + "-*", filepath.Join(t.data, "netns", "*")},
		"cgroup":            {"/sys/fs/cgroup/gitk8s/" + t.name, "/sys/fs/cgroup/*/gitk8s/" + t.name},
	} {
		for _, p := range patterns {
			found, err := filepath.Glob(p)
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				left = append(left, what+" "+f)
			}
		}
	}
	slices.Sort(left)
	return left, nil
}

// processes are those started from the data directory, working in it, told of it,
// or in one of the cluster's cgroups.
func (t traces) processes() ([]string, error) {
	var out []string
	err := eachProcess(func(pid int, dir string) {
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		words := strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " ")
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		cwd, _ := os.Readlink(filepath.Join(dir, "cwd"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if strings.Contains(words, t.data) || strings.HasPrefix(exe, t.data+"/") || strings.HasPrefix(cwd, t.data+"/") ||
			strings.Contains(string(cgroup), "/gitk8s/"+t.name+"/") {
			out = append(out, fmt.Sprintf("process %d: %s", pid, words))
		}
	})
	return out, err
}

// mounts are those in the data directory and of the cluster's namespaces.
func (t traces) mounts() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the mounts: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && (strings.HasPrefix(f[4], t.data+"/") || strings.Contains(f[4], "/netns/gitk8s-"+t.name+"-")) {
			out = append(out, "mount "+f[4])
		}
	}
	return out, nil
}
