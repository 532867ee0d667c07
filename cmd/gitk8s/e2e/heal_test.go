package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// TestSelfHeal changes and deletes what an Application owns behind its back.
func TestSelfHeal(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "heal")
	r := newRepo(t, c)
	r.add(ns, "shop")
	files := map[string]string{
		"app.yaml":   shop{tag: "v1", message: "hello"}.yaml(),
		"extra.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {a: b}\n",
		"keep.yaml":  "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: keep, annotations: {gitk8s.dev/prune: disabled}}\n",
	}
	r.commit("first", files)
	r.deploy()
	mine := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Data: map[string]string{"by": "hand"}}
	if _, err := c.k.CoreV1().ConfigMaps(ns).Create(t.Context(), mine, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	c.kubectl(t, "patch", "configmap", "cfg", "-n", ns, "-p", `{"data":{"message":"tampered"}}`)
	await(t, c, configMapsGVR, ns, "cfg", "the patch is undone", func(m *corev1.ConfigMap) bool { return m.Data["message"] == "hello" })
	old, err := c.k.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "delete", "service", "web", "-n", ns)
	await(t, c, corev1.SchemeGroupVersion.WithResource("services"), ns, "web", "it is made again", func(s *corev1.Service) bool { return s.UID != old.UID })
	c.kubectl(t, "scale", "deployment/web", "-n", ns, "--replicas=5")
	await(t, c, deploymentsGVR, ns, "web", "it has one replica again", func(d *appsv1.Deployment) bool {
		return *d.Spec.Replicas == 1 && d.Status.Replicas == 1 && d.Status.ReadyReplicas == 1
	})
	c.kubectl(t, "delete", "deployment", "web", "-n", ns)
	await(t, c, deploymentsGVR, ns, "web", "it is made again", func(d *appsv1.Deployment) bool { return d.Status.ReadyReplicas == 1 })
	c.awaitApp(t, ns, "shop", "it is Ready again", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
	contains(t, c.kubectl(t, "get", "events", "-n", ns), "DriftCorrected")

	// A field that the repository says nothing about is somebody else's.
	c.kubectl(t, "annotate", "deployment", "web", "-n", ns, "example.com/owner=someone")
	r.commit("without extra", map[string]string{"extra.yaml": "", "keep.yaml": ""})
	contains(t, r.deploy(), "prune", "configmap/extra")
	awaitGone(t, c, configMapsGVR, ns, "extra")
	for _, name := range []string{"mine", "keep"} {
		if _, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("ConfigMap %s should be left alone: %v", name, err)
		}
	}
	d, err := c.k.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || d.Annotations["example.com/owner"] != "someone" {
		t.Errorf("the annotation of somebody else is gone: %v %v", d.Annotations, err)
	}

	// With selfHeal off, changes stay.
	patch := []byte(`{"spec":{"sync":{"selfHeal":false}}}`)
	if _, err := c.d.Resource(applicationsGVR).Namespace(ns).Patch(t.Context(), "shop", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.awaitApp(t, ns, "shop", "the new spec is seen", func(a *v1alpha1.Application) bool { return a.Status.ObservedGeneration == a.Generation })
	c.kubectl(t, "patch", "configmap", "cfg", "-n", ns, "-p", `{"data":{"message":"tampered"}}`)
	res := c.exec(r.dir, "", suite.bin, "diff", "shop", "-n", ns)
	if res.code != 1 || !strings.Contains(res.stdout, "tampered") {
		t.Errorf("diff should show the drift that stays: %s", res)
	}
	// Deleting the Application takes what it deployed with it, and nothing else.
	c.ok(t, "app", "delete", "shop", "-n", ns)
	awaitGone(t, c, deploymentsGVR, ns, "web")
	awaitGone(t, c, revisionsGVR, ns, c.revisionName("shop", r.git("rev-parse", "HEAD")))
	if _, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), "mine", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func (c *cluster) revisionName(app, sha string) string { return app + "-" + sha[:10] }

// TestKustomizeAndDiff deploys a kustomization and compares folders, commits and the
// server.
func TestKustomizeAndDiff(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "kustomize")
	r := newRepo(t, c)
	first := r.commit("base and overlay", map[string]string{
		"base/kustomization.yaml":    "resources: [app.yaml]\n",
		"base/app.yaml":              strings.Replace(shop{tag: "v1", message: "base"}.yaml(), "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: cfg}\ndata: {message: base}\n", "", 1),
		"overlay/kustomization.yaml": "namePrefix: prod-\nresources: [../base]\nconfigMapGenerator: [{name: cfg, literals: [message=overlay]}]\nsecretGenerator: [{name: key, literals: [password=hunter2], options: {disableNameSuffixHash: true}}]\nimages: [{name: gitk8s.local/test/web, newTag: v2}]\n",
	})
	res := c.exec(r.dir, "", suite.bin, "remote", "shop", "--add", "-n", ns, "--path", "overlay")
	if res.code != 0 {
		t.Fatal(res)
	}
	r.deploy()
	c.answers(t, ns, "prod-web", "v2 from prod-web-")
	c.answers(t, ns, "prod-web", "msg=overlay")

	overlay := []string{"--path", "overlay", "-n", ns}
	diff := func(want int, args ...string) result {
		t.Helper()
		res := c.exec(r.dir, "", append([]string{suite.bin, "diff"}, args...)...)
		if res.code != want {
			t.Errorf("exit code should be %d: %s", want, res)
		}
		return res
	}
	diff(0, append([]string{"shop"}, overlay...)...)
	diff(0, append([]string{"shop", "--rev", "HEAD"}, overlay...)...)
	r.write(map[string]string{"overlay/kustomization.yaml": "namePrefix: prod-\nresources: [../base]\nconfigMapGenerator: [{name: cfg, literals: [message=changed]}]\nsecretGenerator: [{name: key, literals: [password=hunter3], options: {disableNameSuffixHash: true}}]\nimages: [{name: gitk8s.local/test/web, newTag: v2}]\n"})
	out := diff(1, append([]string{"shop"}, overlay...)...)
	contains(t, out.stdout, "changed", "deployment.apps/prod-web", "secret/prod-key")
	second := r.commit("changed", nil)

	// Two commits without any server.
	off := func(args ...string) result {
		return c.exec(r.dir, "", append([]string{suite.bin, "--data-dir", filepath.Join(r.dir, "nowhere")}, args...)...)
	}
	between := off("diff", "--from", "HEAD~1", "--to", "HEAD", "--path", "overlay")
	if between.code != 1 {
		t.Errorf("diff of two commits: %s", between)
	}
	contains(t, between.stdout, "message: changed")
	if same := off("diff", "--from", first, "--to", first, "--path", "overlay"); same.code != 0 {
		t.Errorf("diff of a commit with itself: %s", same)
	}
	if bad := off("diff", "--from", "nosuchbranch", "--to", "HEAD", "--path", "overlay"); bad.code != 2 || !strings.Contains(bad.stderr, "nosuchbranch") {
		t.Errorf("diff from a branch that is not there: %s", bad)
	}
	if bad := off("diff", "shop"); bad.code != 2 {
		t.Errorf("diff against no server: %s", bad)
	}
	markdown := off("diff", "--from", first, "--to", second, "--path", "overlay", "-o", "markdown")
	contains(t, markdown.stdout, "**gitk8s plan**", "| object |", "````diff", "<details>")
	plan := c.exec(r.dir, "", append([]string{suite.bin, "plan", "shop"}, overlay...)...)
	if plan.code != 1 {
		t.Errorf("plan: %s", plan)
	}
	contains(t, plan.stdout, "configure", "deployment.apps/prod-web")
	render := off("render", "--path", "overlay")
	contains(t, render.stdout, "kind: Deployment", "name: prod-web", "message: changed")
	at := off("render", "--path", "overlay", "--rev", first)
	contains(t, at.stdout, "message: overlay")
	// Values of Secrets are nowhere to be seen.
	for _, shown := range []string{out.stdout, between.stdout, markdown.stdout, plan.stdout, r.deploy(), c.kubectl(t, "get", "events", "-n", ns), c.up.out.String()} {
		lacks(t, shown, "hunter2", "hunter3", "aHVudGVyMg", "aHVudGVyMw")
	}
}
