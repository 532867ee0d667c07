package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

func (c *cluster) status(t *testing.T, ns string) *v1alpha1.Application {
	t.Helper()
	app := &v1alpha1.Application{}
	if err := json.Unmarshal([]byte(c.ok(t, "status", "shop", "-n", ns, "-o", "json")), app); err != nil {
		t.Fatal(err)
	}
	return app
}

// deployed fails the test unless a commit is the deployed one.
func (c *cluster) deployed(t *testing.T, ns, sha string) *v1alpha1.Application {
	t.Helper()
	app := c.status(t, ns)
	if app.Status.DeployedCommit != sha {
		t.Errorf("deployed is %s, want %s", app.Status.DeployedCommit, sha)
	}
	return app
}

// TestStory is the main job: deploy, update, a bad commit that is rolled back by
// itself, and rollbacks by commit.
func TestStory(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "story")
	r := newRepo(t, c)
	first := r.commit("first deploy", shop{tag: "v1", message: "hello", replicas: 3}.files())
	r.add(ns, "shop")
	out := r.deploy()
	contains(t, out, "first deploy", "create", "deployment.apps/web", "configmap/cfg", "service/web", "deployed: Ready after")
	c.answers(t, ns, "web", "v1 from web-")
	app := c.deployed(t, ns, first)
	if app.Status.Phase != v1alpha1.PhaseReady || app.Status.Objects != "3/3" {
		t.Errorf("phase %s, objects %s", app.Status.Phase, app.Status.Objects)
	}

	second := r.commit("second", shop{tag: "v2", message: "world", replicas: 3}.files())
	out = r.deploy()
	contains(t, out, "configure", "deployment.apps/web", "configmap/cfg")
	c.answers(t, ns, "web", "msg=world")
	c.deployed(t, ns, second)

	third := r.commit("never ready", shop{tag: "v3", message: "world", replicas: 3, deadline: 3}.files())
	out = r.push()
	contains(t, out, "NOT deployed", "rolling back to "+second[:10])
	app = c.awaitApp(t, ns, "shop", "the rollback is Ready", func(a *v1alpha1.Application) bool {
		return a.Status.Phase == v1alpha1.PhaseReady && a.Status.DeployedCommit == second
	})
	if h := app.Status.HeldAt; h == nil || h.Commit != third || h.Reason != v1alpha1.HeldByAutoRollback {
		t.Errorf("held at %+v, want %s held by AutoRollback", h, third)
	}
	contains(t, c.ok(t, "status", "shop", "-n", ns), "held", third[:10], "resume")
	c.answers(t, ns, "web", "v2 from web-")

	t.Run("history", func(t *testing.T) {
		revs := c.revisions(t, ns, "shop")
		if len(revs) != 3 {
			t.Fatalf("%d revisions, want 3", len(revs))
		}
		for i, want := range []struct {
			commit  string
			outcome v1alpha1.Outcome
		}{{third, v1alpha1.OutcomeRolledBack}, {second, v1alpha1.OutcomeSucceeded}, {first, v1alpha1.OutcomeSucceeded}} {
			if revs[i].Spec.Commit != want.commit || revs[i].Status.Outcome != want.outcome {
				t.Errorf("revision %d is %s %s, want %s %s", i, revs[i].Spec.Commit, revs[i].Status.Outcome, want.commit, want.outcome)
			}
		}
		contains(t, c.ok(t, "history", "shop", "-n", ns), "first deploy", "second", "never ready", "RolledBack")
		contains(t, c.kubectl(t, "rollout", "history", "deployment/web", "-n", ns), first[:10]+" first deploy", second[:10]+" second")
	})
	t.Run("held commit", func(t *testing.T) {
		// Neither the same commit pushed again nor a sync deploys it.
		if out := r.push(); !strings.Contains(out, "Everything up-to-date") {
			t.Errorf("push of the same commit: %s", out)
		}
		res := c.run("sync", "shop", "-n", ns)
		if res.code != 1 {
			t.Errorf("sync of a held commit should exit with 1: %s", res)
		}
		contains(t, res.stderr, "held", "resume")
		c.deployed(t, ns, second)
	})
	t.Run("rollback to the first commit", func(t *testing.T) {
		c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", first)
		c.answers(t, ns, "web", "v1 from web-")
		c.answers(t, ns, "web", "msg=hello")
		c.deployed(t, ns, first)
	})
	t.Run("newer commit lifts the hold", func(t *testing.T) {
		fourth := r.commit("fourth", shop{tag: "v2", message: "again", replicas: 2}.files())
		r.deploy()
		app := c.deployed(t, ns, fourth)
		if app.Status.HeldAt != nil {
			t.Errorf("still held: %+v", app.Status.HeldAt)
		}
		c.answers(t, ns, "web", "v2 from web-")
	})
	t.Run("a failure after a rollback brings back what ran", func(t *testing.T) {
		c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", first)
		r.commit("never ready either", shop{tag: "v3", message: "again", replicas: 2, deadline: 2}.files())
		contains(t, r.push(), "NOT deployed", "rolling back to "+first[:10])
		c.deployed(t, ns, first)
		c.answers(t, ns, "web", "v1 from web-")
	})
}

// TestRollbackWalk checks which revision a rollback means: each one without a
// target goes one further back, and names of all forms work.
func TestRollbackWalk(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "walk")
	r := newRepo(t, c)
	r.add(ns, "shop")
	cm := func(i int) map[string]string {
		return map[string]string{"cm.yaml": fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cfg}\ndata: {count: '%d'}\n", i)}
	}
	var shas []string
	for i := range 4 {
		shas = append(shas, r.commit(fmt.Sprintf("commit %d", i), cm(i)))
		r.deploy()
	}
	live := func() string {
		m, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), "cfg", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return m.Data["count"]
	}
	for _, want := range []int{2, 1, 0} {
		c.ok(t, "rollback", "shop", "-n", ns)
		c.deployed(t, ns, shas[want])
		if got := live(); got != fmt.Sprint(want) {
			t.Errorf("the ConfigMap says %s, want %d", got, want)
		}
	}
	res := c.run("rollback", "shop", "-n", ns)
	if res.code != 1 {
		t.Errorf("nothing is before the first revision: %s", res)
	}
	contains(t, res.stderr, "no successful revision before")
	for _, to := range []struct {
		name string
		want int
	}{{shas[3][:7], 3}, {"HEAD~2", 1}, {"3", 2}, {shas[0], 0}} {
		c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", to.name)
		c.deployed(t, ns, shas[to.want])
	}
	res = c.run("rollback", "shop", "-n", ns, "--to-revision", "feedbeef")
	if res.code != 1 {
		t.Errorf("rollback to an unknown commit: %s", res)
	}
	contains(t, res.stderr, "feedbeef", "history")

	// --hold keeps it also when a newer commit comes, until resume.
	c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", shas[1], "--hold")
	newest := r.commit("commit 4", cm(4))
	contains(t, r.push(), "held", "resume")
	c.deployed(t, ns, shas[1])
	c.ok(t, "resume", "shop", "-n", ns)
	app := c.deployed(t, ns, newest)
	if app.Status.HeldAt != nil || live() != "4" {
		t.Errorf("after resume: held %+v, ConfigMap %s", app.Status.HeldAt, live())
	}
	// hold without a rollback does the same.
	c.ok(t, "hold", "shop", "-n", ns, "--reason", "freeze before the fair")
	r.commit("commit 5", cm(5))
	contains(t, r.push(), "freeze before the fair")
	c.deployed(t, ns, newest)
	c.ok(t, "resume", "shop", "-n", ns)
	if live() != "5" {
		t.Errorf("after resume the ConfigMap says %s", live())
	}
}

// TestRollbackRestoresEverything rolls back although the tag was pushed again and
// deleted, an object was pruned, and the repository is gone.
func TestRollbackRestoresEverything(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "restore")
	digest, err := c.pushImage("test/restore:stable", "VERSION=one")
	if err != nil {
		t.Fatal(err)
	}
	r := newRepo(t, c)
	extra := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {kept: 'yes'}\n"
	app := shop{image: "gitk8s.local/test/restore:stable", message: "hello"}
	first := r.commit("with extra", map[string]string{"app.yaml": app.yaml(), "extra.yaml": extra})
	c.ok(t, "app", "create", "shop", "-n", ns, "--repo", "file://"+r.dir, "--interval", "1s")
	await := func(sha string) {
		t.Helper()
		c.awaitApp(t, ns, "shop", "commit "+sha+" is Ready", func(a *v1alpha1.Application) bool {
			return a.Status.DeployedCommit == sha && a.Status.Phase == v1alpha1.PhaseReady
		})
	}
	await(first)
	c.answers(t, ns, "web", "one from")

	// The same tag means something else now: nothing happens until a commit does.
	second, err := c.pushImage("test/restore:stable", "VERSION=two")
	if err != nil {
		t.Fatal(err)
	}
	c.ok(t, "sync", "shop", "-n", ns)
	if got := c.runningImages(t, ns); len(got) != 1 || !strings.HasSuffix(got[0], digest) {
		t.Errorf("after the tag moved the pods run %q, want %s", got, digest)
	}
	app.message = "changed"
	sha := r.commit("without extra", map[string]string{"app.yaml": app.yaml(), "extra.yaml": ""})
	await(sha)
	awaitGone(t, c, configMapsGVR, ns, "extra")
	c.answers(t, ns, "web", "two from")
	if got := c.runningImages(t, ns); len(got) != 1 || !strings.HasSuffix(got[0], second) {
		t.Errorf("the pods run %q, want %s", got, second)
	}

	c.deleteTag(t, "test/restore:stable")
	r.away()
	c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", first)
	c.answers(t, ns, "web", "one from")
	c.answers(t, ns, "web", "msg=hello")
	m, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), "extra", metav1.GetOptions{})
	if err != nil || m.Data["kept"] != "yes" {
		t.Errorf("the pruned ConfigMap was not restored: %v %v", m.Data, err)
	}
	c.awaitApp(t, ns, "shop", "status says that the repository cannot be read", func(a *v1alpha1.Application) bool {
		for _, cond := range a.Status.Conditions {
			if cond.Type == v1alpha1.ConditionSourceReady && cond.Status == metav1.ConditionFalse {
				return a.Status.DeployedCommit == first
			}
		}
		return false
	})
	contains(t, c.ok(t, "status", "shop", "-n", ns), "source", r.dir)
}

// runningImages are the images of the web pods that are not stopping.
func (c *cluster) runningImages(t *testing.T, ns string) []string {
	t.Helper()
	pods, err := c.k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var out []string
	for _, p := range pods.Items {
		if img := p.Spec.Containers[0].Image; p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodFailed && !seen[img] {
			seen[img] = true
			out = append(out, img)
		}
	}
	return out
}

// revisions reads `gitk8s history`, the newest first.
func (c *cluster) revisions(t *testing.T, ns, app string) []v1alpha1.Revision {
	t.Helper()
	var revs []v1alpha1.Revision
	if err := json.Unmarshal([]byte(c.ok(t, "history", app, "-n", ns, "-o", "json")), &revs); err != nil {
		t.Fatal(err)
	}
	return revs
}

// TestSetsDeployed: what commits deploy has their names in the histories of sets, too.
func TestSetsDeployed(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "sets-deployed")
	r := newRepo(t, c)
	sets := func(tag string) map[string]string {
		var out []string
		for _, kind := range []string{"StatefulSet", "DaemonSet"} {
			out = append(out, fmt.Sprintf(`apiVersion: apps/v1
kind: %s
metadata: {name: web}
spec:
  selector: {matchLabels: {of: %[1]s}}
  template: {metadata: {labels: {of: %[1]s}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: web, image: "gitk8s.local/test/web:%s"}]}}
`, kind, tag))
		}
		return map[string]string{"sets.yaml": strings.Join(out, "---\n")}
	}
	first := r.commit("both begin", sets("v1"))
	r.add(ns, "sets")
	r.deploy()
	second := r.commit("both go on", sets("v2"))
	r.deploy()
	for _, kind := range []string{"statefulset", "daemonset"} {
		contains(t, c.kubectl(t, "rollout", "history", kind+"/web", "-n", ns), "1         "+first[:10]+" both begin", "2         "+second[:10]+" both go on")
	}
}
