package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// repo is a working copy whose remote is an application of the cluster.
type repo struct{ dir string }

func (b *bench) newRepo(ctx context.Context, c *cluster, app string) (*repo, error) {
	r := &repo{dir: filepath.Join(b.dir, app)}
	url, err := c.run(ctx, "remote", app)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"remote", "add", "gitk8s", url}} {
		if err := r.git(ctx, args...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// git runs stock git without anybody's configuration.
func (r *repo) git(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@localhost", "GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@localhost")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", args[0], err, out)
	}
	return nil
}

// commit makes the repository hold exactly these files.
func (r *repo) commit(ctx context.Context, subject string, files map[string]string) error {
	old, err := filepath.Glob(filepath.Join(r.dir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := r.git(ctx, "add", "-A"); err != nil {
		return err
	}
	return r.git(ctx, "commit", "-q", "-m", subject)
}

// push starts `git push`; it ends when the rollout has, which the caller may not
// want to wait for.
func (r *repo) push(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.git(ctx, "push", "-q", "gitk8s", "main") }()
	return done
}

// deployment as a person would write it.
func deployment(name, version string, replicas int, probe bool) string {
	readiness := ""
	if probe {
		readiness = `
        readinessProbe:
          httpGet: {path: /readyz, port: 8080}
          periodSeconds: 1`
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
      - name: web
        image: %[3]s%[4]s
`, name, replicas, image(version), readiness)
}

// configMap gives a repository something to keep while the rest is pruned.
const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: keep}\n"

const pushReplicas = 3

// pushes measures a commit with a new Deployment, from the start of `git push` to
// the moment when all its pods are Ready, and the floor for it.
func (b *bench) pushes(ctx context.Context, c *cluster) error {
	floor, err := b.floor(ctx, pushReplicas, b.runs)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	r, err := b.newRepo(ctx, c, "push")
	if err != nil {
		return err
	}
	var ready, returned sample
	for i := range b.runs {
		name := fmt.Sprintf("web-%d", i)
		if err := r.commit(ctx, "add "+name, map[string]string{"keep.yaml": configMap, "web.yaml": deployment(name, "v1", pushReplicas, false)}); err != nil {
			return err
		}
		readyAfter, returnedAfter, err := c.pushAndWait(ctx, r, name, pushReplicas)
		if err != nil {
			return err
		}
		ready, returned = append(ready, readyAfter), append(returned, returnedAfter)
		if err := c.prune(ctx, r, name); err != nil {
			return err
		}
	}
	goal := time.Duration(1.5*float64(floor.at(0.5))) + 500*time.Millisecond
	b.add(row{what: "the same 3 containers started directly, in parallel (floor)", figure: floor.spread()})
	b.add(row{what: "`git push` → 3 pods of a new Deployment Ready", figure: ready.spread(), aim: "1.5 × floor + 0.5 s = " + show(goal), kubernetes: "2.15 s (`kubectl apply`); Flux 2.5–12.2 s"})
	b.add(row{what: "`git push` → the command returns, the rollout reported", figure: returned.spread()})
	return nil
}

// pushAndWait pushes, and returns after what time the Deployment's pods were Ready
// and `git push` had returned.
func (c *cluster) pushAndWait(ctx context.Context, r *repo, name string, replicas int) (ready, returned time.Duration, err error) {
	w, err := c.watchPods(ctx, name)
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	began := time.Now()
	pushed := r.push(ctx)
	up := map[string]bool{}
	at, err := until(ctx, w, name+" is Ready", func(ev watch.Event) bool {
		if p, ok := ev.Object.(*corev1.Pod); ok && isReady(p) {
			up[p.Name] = true
		}
		return len(up) == replicas
	})
	if err != nil {
		return 0, 0, err
	}
	if err := <-pushed; err != nil {
		return 0, 0, err
	}
	return at.Sub(began), time.Since(began), nil
}

// prune pushes a commit without the Deployment and waits until its pods are gone.
func (c *cluster) prune(ctx context.Context, r *repo, name string) error {
	w, err := c.watchPods(ctx, name)
	if err != nil {
		return err
	}
	defer w.Stop()
	if err := r.commit(ctx, "remove "+name, map[string]string{"keep.yaml": configMap}); err != nil {
		return err
	}
	if err := <-r.push(ctx); err != nil {
		return err
	}
	gone := 0
	_, err = until(ctx, w, "the pods of "+name+" are gone", func(ev watch.Event) bool {
		if ev.Type == watch.Deleted {
			gone++
		}
		return gone == pushReplicas
	})
	return err
}
