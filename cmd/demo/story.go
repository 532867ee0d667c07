package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// story is one telling, with its cluster and its repository.
type story struct {
	*shell
	bin, manifests, dir, data, repo string

	began  time.Time
	before machine // what the machine had before us
	ours   traces  // by which what we leave is known

	up    *exec.Cmd
	ended chan error // gives the outcome of up, once
	info  struct {
		Kubeconfig   string `json:"kubeconfig"`
		Registry     string `json:"registry"`
		DockerConfig string `json:"dockerConfig"`
	}
	client kubernetes.Interface
	first  string // the first release's commit
}

// pagePath is the start page of the demo's Service through the API.
const pagePath = "/api/v1/namespaces/default/services/web:80/proxy/"

func (s *story) tell(ctx context.Context, keep bool) error {
	for _, step := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"Start a control plane and two workers", func(ctx context.Context) error { return s.start(ctx, keep) }},
		{"Push three images of one small web server into its registry", s.pushImages},
		{"Deploy: git push", s.deploy},
		{"Release: a new image and a changed ConfigMap, pod by pod", s.release},
		{"A release that never becomes ready is rolled back by itself", s.breakIt},
		{"History, and back to the first commit: every object of it", s.rollBack},
	} {
		s.headline(time.Since(s.began), "%s", step.title)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(step.title[:1])+step.title[1:], err)
		}
	}
	return nil
}

// start runs `gitk8s up` beside us until it says that the nodes are ready.
func (s *story) start(ctx context.Context, keep bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.startUp(ctx, keep); err != nil {
		return err
	}
	var err error
	if s.ours, err = tracesOf(s.up.Process.Pid, s.data); err != nil {
		return err
	}
	out, err := s.quiet(ctx, s.dir, "gitk8s", "info", "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &s.info); err != nil {
		return fmt.Errorf("`gitk8s info -o json`: %w", err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", s.info.Kubeconfig)
	if err != nil {
		return err
	}
	cfg.QPS = -1
	if s.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	return s.run(ctx, s.dir, "gitk8s", "kubectl", "get", "nodes")
}

func (s *story) pushImages(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := pushImages(ctx, s.info.Registry, s.info.DockerConfig, filepath.Join(s.bin, "demo-server")); err != nil {
		return err
	}
	for _, r := range releases {
		s.say("gitk8s.local/shop/web:%s  %s", r.tag, strings.Join(r.env, " "))
	}
	return nil
}

func (s *story) deploy(ctx context.Context) error {
	if err := os.CopyFS(s.repo, os.DirFS(s.manifests)); err != nil {
		return err
	}
	if err := s.each(ctx, [][]string{
		{"ls"},
		{"git", "init", "--quiet", "--initial-branch=main"},
		{"git", "add", "."},
		{"git", "commit", "--quiet", "--message", "Open the shop"},
		{"gitk8s", "remote", "shop", "--add"},
		{"git", "push", "gitk8s", "main"},
		{"gitk8s", "kubectl", "get", "pods", "-o", "wide"},
	}); err != nil {
		return err
	}
	var err error
	if s.first, err = s.quiet(ctx, s.repo, "git", "rev-parse", "HEAD"); err != nil {
		return err
	}
	return s.expectPage(ctx, "shop v1: Welcome to the shop (spring collection)")
}

func (s *story) release(ctx context.Context) error {
	err := s.commit(ctx, "Start the summer sale", map[string]string{
		"web:v1": "web:v2", "Welcome to the shop": "Summer sale", "spring collection": "summer collection",
	})
	if err != nil {
		return err
	}
	watching, err := s.watchRollout(ctx)
	if err != nil {
		return err
	}
	err = s.run(ctx, s.repo, "git", "push", "gitk8s", "main")
	if err := errors.Join(err, watching.stop()); err != nil {
		return err
	}
	return s.expectPage(ctx, "shop v2: Summer sale (summer collection)")
}

func (s *story) breakIt(ctx context.Context) error {
	if err := s.commit(ctx, "Connect to the database", map[string]string{"web:v2": "web:v3"}); err != nil {
		return err
	}
	watching, err := s.watchRollout(ctx)
	if err != nil {
		return err
	}
	// Git's own exit code tells whether the commit was taken, and it is.
	err = s.each(ctx, [][]string{
		{"git", "push", "gitk8s", "main"},
		{"gitk8s", "kubectl", "wait", "application/shop", "--for=jsonpath={.status.phase}=Ready", "--timeout=30s"},
	})
	if err := errors.Join(err, watching.stop()); err != nil {
		return err
	}
	status, err := s.capture(ctx, s.repo, "gitk8s", "status", "shop")
	if err != nil {
		return err
	}
	if !strings.Contains(status, "held") {
		return errors.New("the release that never became ready was not rolled back")
	}
	return s.expectPage(ctx, "shop v2: Summer sale (summer collection)")
}

func (s *story) rollBack(ctx context.Context) error {
	if err := s.each(ctx, [][]string{
		{"gitk8s", "history", "shop"},
		{"gitk8s", "rollback", "shop", "--to-revision", s.first[:10]},
	}); err != nil {
		return err
	}
	if err := s.expectPage(ctx, "shop v1: Welcome to the shop (spring collection)"); err != nil {
		return err
	}
	return s.each(ctx, [][]string{
		{"gitk8s", "history", "shop"},
		{"gitk8s", "kubectl", "rollout", "history", "deployment/web"},
	})
}

// each runs commands in the repository, one after the other.
func (s *story) each(ctx context.Context, commands [][]string) error {
	for _, c := range commands {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := s.run(ctx, s.repo, c[0], c[1:]...)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// commit replaces words in the manifests, shows the difference and commits it.
func (s *story) commit(ctx context.Context, subject string, words map[string]string) error {
	files, err := filepath.Glob(filepath.Join(s.repo, "*.yaml"))
	if err != nil {
		return err
	}
	var pairs []string
	for was, is := range words {
		pairs = append(pairs, was, is)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f, []byte(strings.NewReplacer(pairs...).Replace(string(b))), 0o644); err != nil {
			return err
		}
	}
	diff, err := s.quiet(ctx, s.repo, "git", "diff", "--unified=0")
	if err != nil {
		return err
	}
	s.say("$ git diff --unified=0 | grep '^[+-] '")
	for line := range strings.Lines(diff) {
		if strings.HasPrefix(line, "+ ") || strings.HasPrefix(line, "- ") {
			s.say("%s", strings.TrimRight(line, "\n"))
		}
	}
	return s.run(ctx, s.repo, "git", "commit", "--quiet", "--all", "--message", subject)
}

// expectPage asks the Service for its page and wants it to begin as given.
func (s *story) expectPage(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	page, err := s.capture(ctx, s.dir, "gitk8s", "kubectl", "get", "--raw", pagePath)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(page, want+"\n") {
		return fmt.Errorf("the page does not begin with %q", want)
	}
	return nil
}
