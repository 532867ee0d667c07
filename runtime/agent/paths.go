package agent

import (
	"os"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
)

// The layout below DataDir is part of docs/contracts.md.

func (a *Agent) podsDir() string          { return filepath.Join(a.cfg.DataDir, "pods") }
func (a *Agent) podDir(uid string) string { return filepath.Join(a.podsDir(), uid) }

// seccompDir holds the profiles that pods may name.
func (a *Agent) seccompDir() string { return filepath.Join(a.cfg.DataDir, "seccomp") }

func (a *Agent) logsDir() string { return filepath.Join(a.cfg.DataDir, "logs", "pods") }

func (a *Agent) podLogDir(pod *v1.Pod) string {
	return filepath.Join(a.logsDir(), pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

func (a *Agent) logPath(pod *v1.Pod, container string, attempt int) string {
	return filepath.Join(a.podLogDir(pod), container, strconv.Itoa(attempt)+".log")
}

func (a *Agent) messagePath(uid, container string, attempt int) string {
	return filepath.Join(a.podDir(uid), "containers", container, strconv.Itoa(attempt)+".message")
}

// removeLogs removes a log and what was rotated out of it.
func removeLogs(path string) {
	os.Remove(path)
	old, err := filepath.Glob(path + ".*")
	if err != nil {
		return
	}
	for _, p := range old {
		os.Remove(p)
	}
}
