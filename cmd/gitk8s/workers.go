package main

import (
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
type crew []*member

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

// keepRunning starts a worker again when it ends by itself: its containers have
// run on and are taken up by the next one. The first start is at once, since a node
// without its worker sends requests to pods that are gone; the next are a second
// apart, then two, four, at most thirty.
func (n *ownNodes) keepRunning(i int, m *member) {
	pause := time.Duration(0)
	for {
		started := time.Now()
		err := m.process().Wait()
		if m.stopping() || n.ctx.Err() != nil {
			m.done <- err
			return
		}
		n.e.say("%s ended by itself (%v), starting it again; its log is %s", m.name, err, n.workerLog(m.name))
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
			next, err := n.startWorker(i)
			if err == nil {
				m.replace(next)
				break
			}
			n.e.say("%s could not be started: %v", m.name, err)
		}
	}
}

func (n *ownNodes) nodeDir(name string) string {
	return filepath.Join(n.cfg.DataDir, "nodes", name)
}

func (n *ownNodes) egressSocket() string { return filepath.Join(n.cfg.DataDir, egressFile) }

func (n *ownNodes) workerLog(name string) string {
	return filepath.Join(n.nodeDir(name), "worker.log")
}

func (n *ownNodes) startWorker(i int) (*member, error) {
	name := fmt.Sprintf("worker-%d", i)
	keeper, err := n.keepWorker(name)
	if err != nil {
		return nil, err
	}
	node, err := network.EnsureNode(n.id, name, i, n.ranges)
	if err != nil {
		return nil, err
	}
	inHub := n.ranges.Hub()[0].String()
	if err := network.LeadOut(node.NetNS, n.ranges, n.wayOut); err != nil {
		return nil, err
	}
	if err := writeWorkerFiles(n.ca, n.nodeDir(name), name, node.IPs, "https://"+net.JoinHostPort(inHub, "6443")); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(n.workerLog(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{
		"agent", "--attached", "--name", name, "--node-dir", n.nodeDir(name), "--node-ip", joinAddrs(node.IPs),
		"--" + podsFlag, joinRanges(n.ranges.Pods), "--" + servicesFlag, joinRanges(n.ranges.Services),
		"--registry", net.JoinHostPort(inHub, strconv.Itoa(registryHubPort)),
		"--registry-token-file", filepath.Join(n.cfg.DataDir, "token"),
		"--egress", n.egressSocket(), "--log-level", "info", "--tunnel", string(network.TunnelNever), "--masquerade=false",
	}
	if n.cfg.DockerConfig != "" {
		args = append(args, "--docker-config", n.cfg.DockerConfig)
	}
	args = append(args, "--eviction-hard", n.cfg.EvictionHard)
	if n.cfg.DNSUpstream != "" {
		args = append(args, "--dns-upstream", n.cfg.DNSUpstream)
	}
	command, environ := append([]string{self}, args...), os.Environ()
	if in, ok := entered(); ok {
		if command, environ, err = enterCommand(keeper, in, args); err != nil {
			return nil, err
		}
	}
	m := &member{name: name, cmd: exec.Command(command[0], command[1:]...), done: make(chan error, 1), stop: make(chan struct{})}
	m.cmd.Env = environ
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
func (c crew) stop() error {
	for _, m := range c {
		m.stopWorkloads()
	}
	var errs []error
	limit := time.NewTimer(stopTimeout)
	defer limit.Stop()
	for _, m := range c {
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
