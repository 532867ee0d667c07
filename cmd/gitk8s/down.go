package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/runtime/container/driver"
	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/userspace"
	"gitk8s.dev/gitk8s/runtime/volume"
)

func newDown(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop what runs on this machine, and clean up whatever it left",
		Args:  exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			purge, err := cmd.Flags().GetBool("purge")
			if err != nil {
				return err
			}
			return e.down(cmd.Context(), purge)
		},
	}
	cmd.Flags().Bool("purge", false, "remove the data directory too: the cluster, its history and images")
	return cmd
}

func (e *env) down(ctx context.Context, purge bool) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if _, err := os.Stat(cfg.DataDir); errors.Is(err, os.ErrNotExist) {
		e.say("nothing to do: %s does not exist", cfg.DataDir)
		return nil
	}
	if err := enterAsUser(cfg.DataDir); err != nil {
		return err
	}
	if err := stopRunning(ctx, filepath.Join(cfg.DataDir, "lock")); err != nil {
		return err
	}
	lock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// It ends with the one above, or has lost it.
	if err := stopRunning(ctx, filepath.Join(cfg.DataDir, holderLock)); err != nil {
		return err
	}
	if err := errors.Join(cleanNodes(cfg.DataDir), leaveServer(cfg.DataDir), network.DeleteTopology(topologyID(cfg.DataDir))); err != nil {
		return err
	}
	if err := letGo(cfg.DataDir); err != nil {
		return err
	}
	if purge {
		return removeDataDir(cfg.DataDir)
	}
	e.say("stopped; the cluster's state is kept in %s (--purge removes it)", cfg.DataDir)
	return nil
}

// removeDataDir removes what gitk8s made in a directory, and the directory if that
// was all: --data-dir may have been mistyped.
func removeDataDir(dir string) error {
	var errs []error
	for _, name := range []string{"admin.kubeconfig", "info.json", "token", "docker", "pki", "etcd", "git", "mirrors", "registry", "nodes", "lock", egressFile, holderLock, keeperFile, idsFile, pinsDir} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// stopRunning ends the process that holds a lock, if there is one, and waits for it.
func stopRunning(ctx context.Context, lock string) error {
	f, err := os.OpenFile(lock, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		return nil // nobody runs
	}
	b, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s is held, but does not say by which process", lock)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it is gone
	}
	defer unix.Close(fd)
	until := time.Now().Add(stopTimeout + 30*time.Second)
	for time.Now().Before(until) && ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 500)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return errors.Join(ctx.Err(), fmt.Errorf("process %d is still stopping its workloads", pid))
}

// cleanNodes removes what workers left: containers, pod networks and mounts. Their
// processes have ended or end by themselves.
func cleanNodes(dataDir string) error {
	dirs, err := filepath.Glob(filepath.Join(dataDir, "nodes", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		if err := stopRunning(context.Background(), filepath.Join(dir, "lock")); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, cleanNode(dir))
	}
	return errors.Join(errs...)
}

// leaveMachine removes what a worker that was enrolled has added to the machine's own
// network; those of `up` have one each, which goes with all that is in it.
func leaveMachine(dir string) error {
	config, err := os.ReadFile(filepath.Join(dir, workerConfig))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values := map[string]any{podsFlag: defaultPods, servicesFlag: defaultServices}
	if err := yaml.Unmarshal(config, &values); err != nil {
		return err
	}
	ranges, err := parseRanges(fmt.Sprint(values[podsFlag]), fmt.Sprint(values[servicesFlag]), "")
	if err != nil {
		return err
	}
	return errors.Join(userspace.Remove("", ranges.Services), removePolicies(ranges), network.Leave("", ranges))
}

func cleanNode(dir string) error {
	return cmp.Or(cleanPods(dir), endKeeper(dir))
}

// cleanPods removes what a worker has made for its pods.
func cleanPods(dir string) error {
	var errs []error
	// An ordinary user's may have been delegated to another session.
	parents := map[string]bool{cgroupParent(dir): true}
	if _, err := os.Stat(filepath.Join(dir, "run")); err == nil {
		d, err := driver.New(driver.Config{StateDir: filepath.Join(dir, "run")})
		if err != nil {
			return err
		}
		defer d.Close()
		sandboxes, err := d.List(context.Background())
		errs = append(errs, err)
		for _, s := range sandboxes {
			errs = append(errs, d.RemoveSandbox(context.Background(), s.Config.ID))
			parents[s.Config.CgroupParent] = true
		}
	}
	errs = append(errs, network.DeletePods(filepath.Join(dir, networkDir)), network.DeleteCNIPods(context.Background(), filepath.Join(dir, cniDir)), leaveMachine(dir), volume.UnmountBelow(dir))
	for p := range parents {
		errs = append(errs, removeCgroups(p))
	}
	for _, sub := range []string{"pods", "logs"} {
		if errors.Join(errs...) == nil {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, sub)))
		}
	}
	return errors.Join(errs...)
}
