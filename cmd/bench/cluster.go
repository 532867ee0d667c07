package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
)

// patience bounds every wait: what takes longer does not work.
const patience = 2 * time.Minute

// cluster is a running `gitk8s up`.
type cluster struct {
	gitk8s, dir string
	cmd         *exec.Cmd
	ended       chan struct{}
	// apiReady and nodesReady count from exec, by the lines that `up` prints as
	// they arrive here.
	apiReady, nodesReady time.Duration

	kubernetes.Interface
	info struct {
		Kubeconfig string `json:"kubeconfig"`
		Registry   string `json:"registry"`
	}
	token string
}

// startCluster starts `gitk8s up` on a data directory and waits for its nodes.
func (b *bench) startCluster(ctx context.Context, dir string) (*cluster, error) {
	c := &cluster{gitk8s: b.gitk8s, dir: dir, ended: make(chan struct{})}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.remove())
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context) error {
	c.cmd = exec.Command(c.gitk8s, "up", "--data-dir", c.dir, "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0", "--pod-egress=false")
	// Ctrl-C in a terminal is for us, who stop it in order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c.cmd.Stdout, c.cmd.Stderr = w, w
	began := time.Now()
	err = c.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		c.cmd = nil
		return err
	}
	ready := make(chan struct{})
	var said []string
	go func() {
		defer close(c.ended)
		defer r.Close()
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			at := time.Since(began)
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "API ready"):
				c.apiReady = at
			case strings.Contains(line, "nodes Ready after"):
				c.nodesReady = at
				close(ready)
			case c.nodesReady == 0:
				said = append(said, line)
			}
		}
		// A line too long for the scanner must not make `up` wait for a reader.
		_, _ = io.Copy(io.Discard, r)
		_ = c.cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-ready:
		return c.connect()
	case <-c.ended:
		return fmt.Errorf("`gitk8s up` ended (%s):\n%s", c.cmd.ProcessState, strings.Join(said, "\n"))
	case <-ctx.Done():
		return fmt.Errorf("`gitk8s up` did not get its nodes Ready: %w", ctx.Err())
	}
}

func (c *cluster) connect() error {
	raw, err := os.ReadFile(filepath.Join(c.dir, "info.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &c.info); err != nil {
		return fmt.Errorf("info.json: %w", err)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token"))
	if err != nil {
		return err
	}
	c.token = strings.TrimSpace(string(token))
	rc, err := clientcmd.BuildConfigFromFlags("", c.info.Kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst = -1, -1
	c.Interface, err = kubernetes.NewForConfig(rc)
	return err
}

// stop ends `gitk8s up` as Ctrl-C does.
func (c *cluster) stop() error {
	if c.cmd == nil {
		return nil
	}
	_ = c.cmd.Process.Signal(os.Interrupt) // it may have ended already
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-c.ended:
		return nil
	case <-limit.C:
		_ = c.cmd.Process.Kill()
		return fmt.Errorf("`gitk8s up` did not stop within %s and was killed", patience)
	}
}

// remove stops it and removes everything that it made. It works without the
// context of the run, which may have been cancelled.
func (c *cluster) remove() error {
	err := c.stop()
	out, downErr := exec.Command(c.gitk8s, "down", "--purge", "--data-dir", c.dir).CombinedOutput()
	if downErr != nil {
		downErr = fmt.Errorf("gitk8s down: %w: %s", downErr, out)
	}
	return errors.Join(err, downErr)
}

// run runs a subcommand of gitk8s against the cluster and returns what it prints.
func (c *cluster) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.gitk8s, append(args, "--data-dir", c.dir)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("gitk8s %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// watchPods watches the pods of an app for what happens from now on. The server may
// close a watch whose reader falls behind, as a reader on two busy cores does; this
// one goes on where that one ended.
func (c *cluster) watchPods(ctx context.Context, app string) (watch.Interface, error) {
	opts := metav1.ListOptions{LabelSelector: "app=" + app}
	list, err := c.CoreV1().Pods(namespace).List(ctx, opts)
	if err != nil {
		return nil, err
	}
	return watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = opts.LabelSelector
			return c.CoreV1().Pods(namespace).Watch(ctx, o)
		},
	})
}

// until reads a watch until done says so, and tells when that was.
func until(ctx context.Context, w watch.Interface, what string, done func(watch.Event) bool) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case ev, ok := <-w.ResultChan():
			if ctx.Err() != nil {
				return time.Time{}, fmt.Errorf("waiting until %s: %w", what, ctx.Err())
			}
			if !ok || ev.Type == watch.Error {
				return time.Time{}, fmt.Errorf("the watch ended before %s: %v", what, ev.Object)
			}
			if done(ev) {
				return time.Now(), nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		}
	}
}

// startup measures from exec to an API that answers and to two Ready nodes.
func (b *bench) startup(ctx context.Context) error {
	var freshAPI, freshNodes, againAPI, againNodes sample
	for i := range b.runs {
		dir := filepath.Join(b.dir, fmt.Sprintf("start-%d", i))
		c, err := b.startCluster(ctx, dir)
		if err != nil {
			return err
		}
		freshAPI, freshNodes = append(freshAPI, c.apiReady), append(freshNodes, c.nodesReady)
		if err := c.stop(); err != nil {
			return errors.Join(err, c.remove())
		}
		if c, err = b.startCluster(ctx, dir); err != nil {
			return err
		}
		againAPI, againNodes = append(againAPI, c.apiReady), append(againNodes, c.nodesReady)
		if err := c.remove(); err != nil {
			return err
		}
	}
	b.add(row{what: "exec → API ready, new data directory", figure: freshAPI.spread()})
	b.add(row{what: "exec → both nodes Ready, new data directory", figure: freshNodes.spread(), aim: "1.5 s", kubernetes: "3.8 s (one node)"})
	b.add(row{what: "exec → API ready, restart", figure: againAPI.spread()})
	b.add(row{what: "exec → both nodes Ready, restart", figure: againNodes.spread(), aim: "1.5 s"})
	return nil
}
