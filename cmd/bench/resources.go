package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// process is one of ours, with what it uses.
type process struct {
	pid, parent int
	name        string
	rss, pss    int64         // bytes
	cpu         time.Duration // since its start
}

// processes of the cluster: `up`, its workers, the pods' shims and the inits of
// their containers. The workloads themselves are not ours.
func (c *cluster) processes() ([]process, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []process
	ours := map[int]bool{}
	for _, e := range entries {
		p, ok := readProcess(e)
		if !ok {
			continue // it has ended
		}
		args, err := os.ReadFile(filepath.Join(e, "cmdline"))
		if err != nil {
			continue
		}
		p.name = c.role(p.pid, bytes.Split(args, []byte{0}))
		ours[p.pid] = p.name != "" && p.name != "init"
		all = append(all, p)
	}
	all = slices.DeleteFunc(all, func(p process) bool { return p.name == "" || p.name == "init" && !ours[p.parent] })
	slices.SortFunc(all, func(a, b process) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// role names a process by its command line; "" is nobody of ours.
func (c *cluster) role(pid int, args [][]byte) string {
	text := func(i int) string {
		if i < len(args) {
			return string(args[i])
		}
		return ""
	}
	below := func(s []byte) bool { return bytes.HasPrefix(s, []byte(c.dir+"/")) }
	switch {
	case pid == c.cmd.Process.Pid:
		return "up"
	case text(1) == "agent" && slices.ContainsFunc(args, below):
		i := slices.IndexFunc(args, func(a []byte) bool { return string(a) == "--name" })
		return "agent " + text(i+1)
	case text(0) == "gitk8s-shim" && below([]byte(text(1))):
		return "shim"
	case text(0) == "/dev/.gitk8s-init":
		return "init"
	}
	return ""
}

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every Linux of ours.
const tick = 10 * time.Millisecond

// readProcess reads what the kernel counts of a process. Parent and CPU time stand
// after the command's name, which may hold anything, in brackets.
func readProcess(dir string) (process, bool) {
	pid, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		return process{}, false
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, false
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return process{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	p := process{pid: pid, parent: parent, cpu: time.Duration(user+system) * tick}
	smaps, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return p, true // the kernel's own have no memory
	}
	for line := range strings.Lines(string(smaps)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "Rss:":
			p.rss = kb << 10
		case "Pss:":
			p.pss = kb << 10
		}
	}
	return p, true
}

// use is what the processes used over a while.
type use struct {
	memory []process
	cpu    float64 // percent of one core
}

// observe counts for the time of -idle.
func (b *bench) observe(ctx context.Context, c *cluster) (use, error) {
	before, err := c.processes()
	if err != nil {
		return use{}, err
	}
	began := time.Now()
	select {
	case <-time.After(b.idle):
	case <-ctx.Done():
		return use{}, ctx.Err()
	}
	after, err := c.processes()
	if err != nil {
		return use{}, err
	}
	took := time.Since(began)
	then := map[int]time.Duration{}
	for _, p := range before {
		then[p.pid] = p.cpu
	}
	u := use{memory: after}
	for _, p := range after {
		u.cpu += 100 * float64(p.cpu-then[p.pid]) / float64(took)
	}
	return u, nil
}

// atRest measures a cluster that runs nothing.
func (b *bench) atRest(ctx context.Context, c *cluster) error {
	u, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	b.addUse("idle, no pods", u, "677 MiB (one node)", "6.4–6.8 % (one node)", true)
	return nil
}

// withPods measures a cluster whose pods only answer their probes.
func (b *bench) withPods(ctx context.Context, c *cluster) error {
	r, err := b.newRepo(ctx, c, "rest")
	if err != nil {
		return err
	}
	if err := r.commit(ctx, "add rest", map[string]string{"web.yaml": deployment("rest", "v1", pushReplicas, false)}); err != nil {
		return err
	}
	if _, _, err := c.pushAndWait(ctx, r, "rest"); err != nil {
		return err
	}
	u, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	b.addUse("with the pods of these runs", u, "", "", false)
	return nil
}

func (b *bench) addUse(when string, u use, kubernetesMemory, kubernetesCPU string, aimed bool) {
	memoryAim, cpuAim := "", ""
	if aimed {
		memoryAim, cpuAim = "250 MB", "3 %"
	}
	type group struct {
		n        int
		rss, pss int64
	}
	var names []string
	groups := map[string]*group{}
	var all group
	for _, p := range u.memory {
		g := groups[p.name]
		if g == nil {
			g = &group{}
			groups[p.name], names = g, append(names, p.name)
		}
		for _, g := range []*group{g, &all} {
			g.n, g.rss, g.pss = g.n+1, g.rss+p.rss, g.pss+p.pss
		}
	}
	for _, name := range names {
		g := groups[name]
		what := name
		if name == "shim" || name == "init" {
			what = fmt.Sprintf("%d × %s", g.n, name)
		}
		b.add(row{what: fmt.Sprintf("memory %s: %s", when, what), figure: megabytes(g.rss, g.pss)})
	}
	b.add(row{what: "memory " + when + ": all", figure: megabytes(all.rss, all.pss), aim: memoryAim, kubernetes: kubernetesMemory})
	b.add(row{what: fmt.Sprintf("processor %s, over %s", when, b.idle), figure: fmt.Sprintf("%.1f %% of one core", u.cpu), aim: cpuAim, kubernetes: kubernetesCPU})
}

func megabytes(rss, pss int64) string {
	return fmt.Sprintf("%.0f MB RSS, %.0f MB PSS", float64(rss)/1e6, float64(pss)/1e6)
}
