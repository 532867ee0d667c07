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
	rss, pss    int64 // bytes
	anonymous   int64
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
		case "Anonymous:":
			p.anonymous = kb << 10
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
	b.addUse("idle, no pods", u, row{aim: "250 MB", kubernetes: "677 MiB, 303 MiB anonymous (one node)"}, row{aim: "3 %", kubernetes: "6.4–6.8 % (one node)"})
	return nil
}

// withPods measures a cluster whose pods only answer their probes.
func (b *bench) withPods(ctx context.Context, c *cluster) error {
	if _, err := b.pushAnother(ctx, c, "rest", pushReplicas); err != nil {
		return err
	}
	u, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	b.addUse(fmt.Sprintf("with %d pods", u.pods()), u, row{}, row{})
	return nil
}

const scaleReplicas = 100

// scale measures a Deployment of many pods at once, and then the cluster with them.
func (b *bench) scale(ctx context.Context, c *cluster) error {
	took, err := b.pushAnother(ctx, c, "scale", scaleReplicas)
	if err != nil {
		return err
	}
	b.add(row{what: fmt.Sprintf("`git push` → %d pods of a new Deployment Ready, one run", scaleReplicas), figure: show(took), kubernetes: "31.9 s (one node)"})
	u, err := b.observe(ctx, c)
	if err != nil {
		return err
	}
	b.addUse(fmt.Sprintf("with %d pods", u.pods()), u, row{kubernetes: "942 MiB and the shims (100 pods, one node)"}, row{kubernetes: "16.8 % (100 pods, one node)"})
	return nil
}

// pushAnother pushes an application with one Deployment and returns after what time
// its pods were Ready.
func (b *bench) pushAnother(ctx context.Context, c *cluster, name string, replicas int) (time.Duration, error) {
	r, err := b.newRepo(ctx, c, name)
	if err != nil {
		return 0, err
	}
	if err := r.commit(ctx, "add "+name, map[string]string{"web.yaml": deployment(name, "v1", replicas, false)}); err != nil {
		return 0, err
	}
	ready, _, err := c.pushAndWait(ctx, r, name, replicas)
	return ready, err
}

// pods counts the pods by their shims.
func (u use) pods() (n int) {
	for _, p := range u.memory {
		if p.name == "shim" {
			n++
		}
	}
	return n
}

// addUse adds the rows of one observation; memory and cpu bring what stands beside
// the sums.
func (b *bench) addUse(when string, u use, memory, cpu row) {
	var names []string
	groups := map[string][]process{}
	for _, p := range u.memory {
		if groups[p.name] == nil {
			names = append(names, p.name)
		}
		groups[p.name] = append(groups[p.name], p)
	}
	for _, name := range names {
		what := name
		if name == "shim" || name == "init" {
			what = fmt.Sprintf("%d × %s", len(groups[name]), name)
		}
		b.add(row{what: fmt.Sprintf("memory %s: %s", when, what), figure: megabytes(groups[name])})
	}
	memory.what, memory.figure = "memory "+when+": all", megabytes(u.memory)
	b.add(memory)
	cpu.what, cpu.figure = fmt.Sprintf("processor %s, over %s", when, b.idle), fmt.Sprintf("%.1f %% of one core", u.cpu)
	b.add(cpu)
}

// megabytes writes the sums. RSS counts the pages of the binary once for each
// process that maps them, PSS once in all.
func megabytes(all []process) string {
	var rss, pss, anonymous int64
	for _, p := range all {
		rss, pss, anonymous = rss+p.rss, pss+p.pss, anonymous+p.anonymous
	}
	return fmt.Sprintf("%.0f MB PSS, %.0f MB of it anonymous (RSS %.0f MB)", float64(pss)/1e6, float64(anonymous)/1e6, float64(rss)/1e6)
}
