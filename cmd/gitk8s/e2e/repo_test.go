package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// repo is a checkout driven with stock git.
type repo struct {
	t   *testing.T
	c   *cluster
	dir string
}

// newRepo makes an empty repository with branch main.
func newRepo(t *testing.T, c *cluster) *repo {
	t.Helper()
	r := &repo{t: t, c: c, dir: t.TempDir()}
	r.git("init", "-q", "-b", "main")
	return r
}

// try runs git.
func (r *repo) try(args ...string) result {
	return r.c.exec(r.dir, "", append([]string{"git"}, args...)...)
}

// git runs git and fails the test unless it succeeds.
func (r *repo) git(args ...string) string {
	r.t.Helper()
	res := r.try(args...)
	if res.code != 0 {
		r.t.Fatal(res)
	}
	return strings.TrimSpace(res.stdout)
}

// write makes the files of the checkout; one with the text "" is removed.
func (r *repo) write(files map[string]string) {
	r.t.Helper()
	for name, text := range files {
		path := filepath.Join(r.dir, name)
		if text == "" {
			if err := os.Remove(path); err != nil {
				r.t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
}

// commit writes files and commits everything; it returns the SHA.
func (r *repo) commit(subject string, files map[string]string) string {
	r.t.Helper()
	r.write(files)
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", subject)
	return r.git("rev-parse", "HEAD")
}

// add makes the Application in a namespace and adds it as remote "gitk8s", as a
// user would.
func (r *repo) add(ns, app string) {
	r.t.Helper()
	res := r.c.exec(r.dir, "", suite.bin, "remote", app, "--add", "-n", ns)
	if res.code != 0 {
		r.t.Fatal(res)
	}
}

// push pushes main and returns what git printed; it fails the test unless the push
// was taken.
func (r *repo) push(args ...string) string {
	r.t.Helper()
	res := r.try(append([]string{"push", "gitk8s", "main"}, args...)...)
	if res.code != 0 {
		r.t.Fatal(res)
	}
	return res.stderr
}

// deploy pushes and fails the test unless the rollout succeeds.
func (r *repo) deploy() string {
	r.t.Helper()
	out := r.push()
	if !strings.Contains(out, "deployed: ") {
		r.t.Fatalf("the push did not deploy:\n%s", out)
	}
	return out
}

// shop is the application that most tests deploy: a Deployment, a Service and the
// ConfigMap that its message comes from.
type shop struct {
	tag      string // of image test/web
	image    string // instead of tag
	message  string
	replicas int
	deadline int // progressDeadlineSeconds
}

func (s shop) yaml() string {
	image := s.image
	if image == "" {
		image = "gitk8s.local/test/web:" + s.tag
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  progressDeadlineSeconds: %d
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: %s
        env:
        - name: MESSAGE
          valueFrom: {configMapKeyRef: {name: cfg, key: message}}
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cfg}
data: {message: %s}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`, max(s.replicas, 1), max(s.deadline, 5), image, s.message)
}

func (s shop) files() map[string]string { return map[string]string{"app.yaml": s.yaml()} }

// away moves the repository to where nobody looks for it.
func (r *repo) away() {
	r.t.Helper()
	if err := os.Rename(r.dir, r.dir+".away"); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(r.dir + ".away") })
}
