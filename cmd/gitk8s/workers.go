package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"gitk8s.dev/gitk8s/runtime/network"
)

// crew are the workers that `up` runs.
type crew struct {
	members []*member
}

// member is one worker: its process, which is replaced when it ends by itself.
type member struct {
	name string
	done chan error    // how it ended, once it has for good
	stop chan struct{} // closed when it is told to stop

	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func (m *member) process() *exec.Cmd {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cmd
}

func (m *member) replace(next *member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cmd, m.stdin = next.cmd, next.stdin
}

func (m *member) stopping() bool {
	select {
	case <-m.stop:
		return true
	default:
		return false
	}
}

// stopWorkloads tells the worker to stop its pods and end.
func (m *member) stopWorkloads() {
	close(m.stop)
	m.mu.Lock()
	defer m.mu.Unlock()
	// One that is gone already cannot be told: cleaning up finds its pods.
	_, _ = io.WriteString(m.stdin, stopWorkloads+"\n")
	_ = m.stdin.Close()
}

// startWorkers starts n workers, each in a network namespace of its own, and dials for
// them what is outside of the cluster.
func (c *controlPlane) startWorkers(ctx context.Context, e *env, n int) (*crew, error) {
	crew := &crew{}
	egress, err := network.ServeEgress(c.egressSocket())
	if err != nil {
		return crew, err
	}
	context.AfterFunc(ctx, func() { _ = egress.Close() })
	c.openWayOut(ctx, e)
	for i := 1; i <= n; i++ {
		m, err := c.startWorker(i)
		if err != nil {
			return crew, fmt.Errorf("worker %d: %w", i, err)
		}
		crew.members = append(crew.members, m)
		go c.keepRunning(ctx, e, i, m)
	}
	return crew, nil
}

// keepRunning starts a worker again when it ends by itself: its containers have
// run on and are taken up by the next one. The first start is at once, since a node
// without its worker sends requests to pods that are gone; the next are a second
// apart, then two, four, at most thirty.
func (c *controlPlane) keepRunning(ctx context.Context, e *env, i int, m *member) {
	pause := time.Duration(0)
	for {
		started := time.Now()
		err := m.process().Wait()
		if m.stopping() || ctx.Err() != nil {
			m.done <- err
			return
		}
		e.say("%s ended by itself (%v), starting it again; its log is %s", m.name, err, c.workerLog(m.name))
		if time.Since(started) > time.Minute {
			pause = 0
		}
		for {
			select {
			case <-m.stop:
				m.done <- nil
				return
			case <-time.After(pause):
			}
			pause = min(max(2*pause, time.Second), 30*time.Second)
			next, err := c.startWorker(i)
			if err == nil {
				m.replace(next)
				break
			}
			e.say("%s could not be started: %v", m.name, err)
		}
	}
}

func (c *controlPlane) nodeDir(name string) string {
	return filepath.Join(c.cfg.DataDir, "nodes", name)
}

func (c *controlPlane) egressSocket() string { return filepath.Join(c.cfg.DataDir, egressFile) }

func (c *controlPlane) workerLog(name string) string {
	return filepath.Join(c.nodeDir(name), "worker.log")
}

func (c *controlPlane) startWorker(i int) (*member, error) {
	name := fmt.Sprintf("worker-%d", i)
	node, err := network.EnsureNode(c.hub, name, i, c.ranges)
	if err != nil {
		return nil, err
	}
	inHub := c.ranges.Hub()[0].String()
	if err := network.LeadOut(node.NetNS, c.ranges, c.wayOut); err != nil {
		return nil, err
	}
	if err := writeWorkerFiles(c.ca, c.nodeDir(name), name, node.IPs, "https://"+net.JoinHostPort(inHub, "6443")); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.workerLog(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{
		"agent", "--attached", "--name", name, "--node-dir", c.nodeDir(name), "--node-ip", joinAddrs(node.IPs),
		"--" + podsFlag, joinRanges(c.ranges.Pods), "--" + servicesFlag, joinRanges(c.ranges.Services),
		"--registry", net.JoinHostPort(inHub, strconv.Itoa(registryHubPort)),
		"--registry-token-file", filepath.Join(c.cfg.DataDir, "token"),
		"--egress", c.egressSocket(), "--log-level", "info", "--tunnel", string(network.TunnelNever), "--masquerade=false",
	}
	if c.cfg.DockerConfig != "" {
		args = append(args, "--docker-config", c.cfg.DockerConfig)
	}
	args = append(args, "--eviction-hard", c.cfg.EvictionHard)
	if c.cfg.DNSUpstream != "" {
		args = append(args, "--dns-upstream", c.cfg.DNSUpstream)
	}
	m := &member{name: name, cmd: exec.Command(self, args...), done: make(chan error, 1), stop: make(chan struct{})}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	// A session of its own: Ctrl-C in a terminal is for us, who stop it in order.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return m, inNetNS(node.NetNS, m.cmd.Start)
}

// inNetNS calls f on a thread in the namespace; a process that it starts is born
// there.
func inNetNS(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine instead of going back
		// to work in the wrong namespace.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err != nil {
			done <- fmt.Errorf("network namespace %s: %w", path, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// stop makes every worker stop its pods and waits for it.
func (c *crew) stop() error {
	if c == nil {
		return nil
	}
	for _, m := range c.members {
		m.stopWorkloads()
	}
	var errs []error
	limit := time.NewTimer(stopTimeout)
	defer limit.Stop()
	for _, m := range c.members {
		select {
		case err := <-m.done:
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			}
		case <-limit.C:
			limit.Reset(0)
			_ = m.process().Process.Kill()
			errs = append(errs, fmt.Errorf("%s did not stop its pods within %s and was killed", m.name, stopTimeout))
		}
	}
	return errors.Join(errs...)
}
