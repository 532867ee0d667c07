package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// upLog is where `gitk8s up` writes what it has to say.
func (s *story) upLog() string { return filepath.Join(s.dir, "up.log") }

// startUp starts `gitk8s up` and shows its lines until the nodes are ready.
func (s *story) startUp(ctx context.Context, keep bool) error {
	args := []string{"up", "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0", "--pod-egress=false"}
	s.say("$ export GITK8S_DATA_DIR=%s", s.data)
	s.say("%s &", transcript("gitk8s", args))
	log, err := os.OpenFile(s.upLog(), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Its context is not ours: it is ended in order, by end or cleanUp.
	s.up = s.command(context.WithoutCancel(ctx), s.dir, "gitk8s", args...)
	s.up.Stdout, s.up.Stderr = log, log
	// Ctrl-C in the terminal is for the demo, which then stops the cluster in
	// order. If the demo is killed, the cluster is told to stop, unless it is to stay.
	s.up.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !keep {
		s.up.SysProcAttr.Pdeathsig = syscall.SIGINT
	}
	s.ended = make(chan error, 1)
	started := make(chan error, 1)
	go s.superviseUp(started)
	if err := <-started; err != nil {
		return fmt.Errorf("start gitk8s: %w", err)
	}
	return s.followUp(ctx)
}

// followUp shows the log of up as it grows, to its line about the nodes.
func (s *story) followUp(ctx context.Context) error {
	log, err := os.Open(s.upLog())
	if err != nil {
		return err
	}
	defer log.Close()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	lines := bufio.NewReader(log)
	part := ""
	for {
		line, err := lines.ReadString('\n')
		part += line
		switch {
		case err == nil:
			line, part = strings.TrimRight(part, "\n"), ""
			s.say("%s", line)
			if strings.Contains(line, "nodes Ready") {
				return nil
			}
			continue
		case !errors.Is(err, io.EOF):
			return err
		}
		select {
		case <-look.C:
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("`gitk8s up` ended by itself: %v", err)
		case <-ctx.Done():
			return fmt.Errorf("the nodes did not become Ready: %w", ctx.Err())
		}
	}
}

// stopUp does to `gitk8s up` what Ctrl-C does and waits for its end.
func (s *story) stopUp(ctx context.Context) error {
	if err := s.up.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-s.ended:
		s.ended <- err
		if err != nil {
			return fmt.Errorf("`gitk8s up`, interrupted: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("`gitk8s up` has not ended after it was interrupted: %w", ctx.Err())
	}
}

// end stops the cluster and looks for anything that it left.
func (s *story) end(ctx context.Context) error {
	s.headline(time.Since(s.began), "Ctrl-C")
	if err := s.stopUp(ctx); err != nil {
		s.showLogs()
		return errors.Join(err, s.cleanUp(ctx))
	}
	s.say("gitk8s up: exit code 0")
	left, err := leftovers(s.before, s.ours)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	if err != nil {
		s.showLogs()
		return errors.Join(err, s.cleanUp(ctx))
	}
	s.say("left behind: no process, network namespace, link, mount, nftables table or cgroup")
	if err := s.run(ctx, s.dir, "gitk8s", "down", "--purge"); err != nil {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	if _, err := os.Stat(s.data); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s is still there after `gitk8s down --purge`", s.data), os.RemoveAll(s.dir))
	}
	s.headline(time.Since(s.began), "Done. `make demo KEEP=1` leaves it running.")
	return os.RemoveAll(s.dir)
}

// cleanUp removes everything after a failure.
func (s *story) cleanUp(ctx context.Context) error {
	if s.up == nil {
		return os.RemoveAll(s.dir)
	}
	stopped := s.stopUp(ctx)
	if stopped != nil && ctx.Err() != nil {
		stopped = errors.Join(stopped, s.up.Process.Kill())
	}
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if _, err := s.quiet(again, s.dir, "gitk8s", "down", "--purge"); err != nil {
		return errors.Join(stopped, err, fmt.Errorf("what is left is in %s; `gitk8s down --data-dir %s --purge` tries again", s.dir, s.data))
	}
	return errors.Join(stopped, os.RemoveAll(s.dir))
}

// showLogs prints the last lines of the logs, for after a failure.
func (s *story) showLogs() {
	logs, err := filepath.Glob(filepath.Join(s.data, "nodes", "*", "worker.log"))
	if err != nil {
		logs = nil // only a pattern can be wrong, and it is not
	}
	for _, f := range append([]string{s.upLog()}, logs...) {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it had not come to that
		}
		lines := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
		s.say("\n--- the end of %s", f)
		for _, l := range lines[max(0, len(lines)-20):] {
			s.say("%s", l)
		}
	}
}

// sayWhatNext is the end of a telling whose cluster is kept.
func (s *story) sayWhatNext() error {
	s.headline(time.Since(s.began), "It is left running (process %d). What to try next:", s.up.Process.Pid)
	s.say(`
  export PATH=%s:$PATH GITK8S_DATA_DIR=%s KUBECONFIG=%s
  cd %s

  gitk8s kubectl get all                              or your own kubectl
  gitk8s kubectl port-forward service/web 8080:80     then: curl http://127.0.0.1:8080/
  gitk8s kubectl scale deployment web --replicas=5    is put back: Git says 3
  gitk8s kubectl delete pod -l app=web                are replaced
  gitk8s logs shop --follow
  gitk8s kubectl get applications,revisions
  git commit --allow-empty -m "Try again" && git push gitk8s main

  gitk8s down --purge && rm -r %s        stops it and removes everything`,
		s.bin, s.data, s.info.Kubeconfig, s.repo, s.dir)
	return nil
}
