// Bench measures gitk8s from outside, on real parts: it starts `gitk8s up` on a
// data directory of its own, pushes images and commits to it with stock tools, and
// watches the Kubernetes API for what happens. It prints a table in Markdown.
//
// It reports figures and judges none of them: it fails when something does not
// work, never because it is slow. Everything it makes is removed, also after an
// error or Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	gitk8s, server string
	runs, pods     int
	idle           time.Duration
	only           string
}

// sections in the order in which they run.
var sections = []string{"startup", "resources", "pods", "push", "rollout", "scale", "store", "scheduler", "proxy", "services", "load", "hollow", "statefulset", "density", "probes", "names"}

func (o options) wants(section string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), section)
}

func main() {
	var o options
	flag.StringVar(&o.gitk8s, "gitk8s", "bin/gitk8s", "the binary to measure")
	flag.StringVar(&o.server, "server", "bin/testserver", "static web server for the images")
	flag.IntVar(&o.runs, "runs", 5, "how often each thing is measured")
	flag.IntVar(&o.pods, "pods", 20, "how many single pods are measured")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long the processor time at rest is counted")
	flag.StringVar(&o.only, "only", "", "comma-separated sections: "+strings.Join(sections, ", ")+" (default all)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// run measures everything and prints the table, as far as it came.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	for _, p := range []*string{&o.gitk8s, &o.server} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return fmt.Errorf("%w; `make bench` builds it", err)
		}
	}
	dir, err := os.MkdirTemp("", "gitk8s-bench-")
	if err != nil {
		return err
	}
	b := &bench{options: o, dir: dir}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir))
		b.print(out)
	}()
	if o.wants("startup") {
		if err := b.startup(ctx); err != nil {
			return fmt.Errorf("startup: %w", err)
		}
	}
	if o.wants("scheduler") {
		if err := b.scheduler(ctx); err != nil {
			return fmt.Errorf("scheduler: %w", err)
		}
	}
	if o.wants("proxy") {
		if err := b.proxies(ctx); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
	}
	if o.only == "scheduler" || o.only == "proxy" {
		return nil // they need no cluster
	}
	c, err := b.startCluster(ctx, filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.remove()) }()
	for _, s := range []struct {
		name string
		f    func(context.Context, *cluster) error
	}{
		{"resources", b.atRest},
		{"", b.prepare},
		{"pods", b.singlePods},
		{"push", b.pushes},
		{"rollout", b.rollouts},
		{"resources", b.withPods},
		{"scale", b.scale},
		{"store", b.store},
		{"services", b.services},
		{"load", b.underLoad},
		{"hollow", b.hollow},
		{"", b.clear},
		{"statefulset", b.orderedStart},
		{"density", b.density},
		{"probes", b.probes},
		{"names", b.names},
	} {
		if s.name != "" && !o.wants(s.name) {
			continue
		}
		if err := s.f(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// bench is one run of the program.
type bench struct {
	options
	dir  string
	rows []row
}

// row of the table.
type row struct{ what, figure, aim, kubernetes string }

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Fprintf(os.Stderr, "%s: %s\n", r.what, r.figure)
}

func (b *bench) print(w io.Writer) {
	fmt.Fprintf(w, "| measured | gitk8s | aim | Kubernetes 1.34 |\n|---|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", r.what, r.figure, orDash(r.aim), orDash(r.kubernetes))
	}
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}
