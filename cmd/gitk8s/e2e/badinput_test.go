package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

const goodConfigMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {key: value}\n"

// bomb is a YAML document whose aliases expand to ten to the ninth strings.
func bomb() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\na0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	return b.String()
}

// TestBadPush pushes what cannot be deployed: the push is refused with the place
// of the fault, the ref does not move, and what runs is not touched.
func TestBadPush(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "badpush")
	r := newRepo(t, c)
	r.add(ns, "shop")
	good := r.commit("good", map[string]string{"good.yaml": goodConfigMap})
	r.deploy()
	// An object of another application, to be claimed below.
	other := newRepo(t, c)
	other.add(ns, "other")
	other.commit("other's", map[string]string{"cm.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: others}\n"})
	other.deploy()

	for _, tt := range []struct {
		name string
		file string
		text string
		want []string
	}{
		{"does not parse", "deploy/broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n\tlabels: {}\n", []string{"deploy/broken.yaml:5"}},
		{"unknown field", "svc.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec:\n  ports: [{port: 80}]\n  selectr: {a: b}\n", []string{"svc.yaml:6", "selectr"}},
		{"unknown kind", "crd.yaml", "# nothing\napiVersion: example.com/v1\nkind: Gadget\nmetadata: {name: x}\n", []string{"crd.yaml:2", "Gadget", "example.com/v1"}},
		{"one identity twice", "twice.yaml", "---\n" + goodConfigMap, []string{"twice.yaml:2", "good.yaml:1", "defined twice"}},
		{"object of another application", "mine.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: others}\n", []string{"configmap/others", "badpush/other"}},
		{"no name", "noname.yaml", "apiVersion: v1\nkind: ConfigMap\n", []string{"noname.yaml:1", "metadata.name"}},
		{"refused by the API", "invalid.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 123456}]}\n", []string{"invalid.yaml:1", "spec.ports[0].port"}},
		{"huge file", "huge.yaml", goodConfigMap + "# " + strings.Repeat("x", 5<<20) + "\n", []string{"huge.yaml", "5 MiB", "a manifest may have 4"}},
		{"alias bomb", "bomb.yaml", bomb(), []string{"bomb.yaml", "excessive aliasing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begun := time.Now()
			r.commit(tt.name, map[string]string{tt.file: tt.text})
			res := r.try("push", "gitk8s", "main")
			if res.code == 0 {
				t.Errorf("the push was taken: %s", res)
			}
			contains(t, res.stderr, append(tt.want, "rejected", "can't be deployed")...)
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("the refusal took %s", took)
			}
			r.git("reset", "-q", "--hard", good)
		})
	}
	t.Run("symlink out of the tree", func(t *testing.T) {
		if err := os.Symlink("/etc/passwd", filepath.Join(r.dir, "passwd.yaml")); err != nil {
			t.Fatal(err)
		}
		r.commit("symlink", nil)
		res := r.try("push", "gitk8s", "main")
		if res.code == 0 {
			t.Errorf("the push was taken: %s", res)
		}
		contains(t, res.stderr, "passwd.yaml", "out of the repository")
		lacks(t, res.stderr, "root:")
		r.git("reset", "-q", "--hard", good)
	})
	t.Run("without credentials", func(t *testing.T) {
		res := r.try("push", c.info.Git+"/"+ns+"/shop.git", "main")
		if res.code == 0 {
			t.Errorf("the push was taken: %s", res)
		}
		res = r.try("push", strings.Replace(c.info.Git, "://", "://gitk8s:wrong@", 1)+"/"+ns+"/shop.git", "main")
		if res.code == 0 {
			t.Errorf("a push with a wrong password was taken: %s", res)
		}
		contains(t, strings.ToLower(res.stderr), "authentication failed")
	})
	t.Run("to an application that does not exist", func(t *testing.T) {
		url := strings.Replace(c.ok(t, "remote", "shop", "-n", ns), "/shop.git", "/nosuch.git", 1)
		res := r.try("push", strings.TrimSpace(url), "main")
		if res.code == 0 {
			t.Errorf("the push was taken: %s", res)
		}
		contains(t, res.stderr, "not found")
	})
	app := c.deployed(t, ns, good)
	if app.Status.Phase != v1alpha1.PhaseReady || app.Status.ObservedCommit != good {
		t.Errorf("after the refusals: %+v", app.Status)
	}
	// The next good commit goes through.
	r.commit("better", map[string]string{"good.yaml": strings.Replace(goodConfigMap, "value", "better", 1)})
	r.deploy()
}

// TestRefused: kubectl is told of the field and of the reason in the words of Kubernetes,
// and of what is taken and does nothing.
func TestRefused(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "refused")
	k := kubectls(c)["own"].in(ns)
	deployment := func(spec, labels string) string {
		return `{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {` + spec + `selector: {matchLabels: {app: a}}, template: {metadata: {labels: {` + labels + `}}, spec: {containers: [{name: c, image: i}]}}}}`
	}
	pod := func(spec string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {` + spec + `}}`
	}
	for name, tt := range map[string]struct{ manifest, want string }{
		"required":     {pod(`containers: []`), "spec.containers: Required value"},
		"out of range": {pod(`containers: [{name: c, image: i, ports: [{containerPort: 70000}]}]`), "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"},
		"duplicate":    {pod(`containers: [{name: c, image: i}, {name: c, image: i}]`), `spec.containers[1].name: Duplicate value: "c"`},
		"unsupported":  {pod(`restartPolicy: Sometimes, containers: [{name: c, image: i}]`), `spec.restartPolicy: Unsupported value: "Sometimes"`},
		"selector":     {deployment("", "app: b"), "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"},
		"no progress":  {deployment("strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}, ", "app: a"), "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"},
	} {
		r := k.try(tt.manifest, "create", "--dry-run=server", "-f", "-")
		if r.code == 0 || !strings.Contains(r.stderr, tt.want) {
			t.Errorf("%s: %s", name, r)
		}
	}
	r := k.try(pod(`runtimeClassName: other, containers: [{name: c, image: i}]`), "create", "--dry-run=server", "-f", "-")
	contains(t, r.String(), "pod/x created", "Warning: spec.runtimeClassName: not acted on yet")
	k.run(t, "create", "deployment", "x", "--image=i", "--replicas=0")
	r = k.try("", "patch", "deployment", "x", "--type=merge", "-p", `{"spec":{"selector":{"matchLabels":{"app":"y"}},"template":{"metadata":{"labels":{"app":"y"}}}}}`)
	contains(t, r.stderr, "spec.selector: Invalid value: ", "field is immutable")
}

// TestMissingImage deploys an image that is not there (yet): what runs is not
// touched, the status says what is missing, and it recovers by itself.
func TestMissingImage(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "noimage")
	r := newRepo(t, c)
	r.add(ns, "shop")
	good := r.commit("good", shop{tag: "v1", message: "hello"}.files())
	r.deploy()
	bad := r.commit("image to come", shop{image: "gitk8s.local/test/later:v1", message: "changed"}.files())
	contains(t, r.push(), "test/later:v1", "what ran before runs on", "next try in")
	app := c.deployed(t, ns, good)
	if ls := app.Status.LastSync; ls == nil || ls.Commit != bad || ls.RetryAt == nil || app.Status.Phase != v1alpha1.PhaseFailed {
		t.Errorf("status does not tell of the failure: %+v", app.Status)
	}
	contains(t, c.ok(t, "status", "shop", "-n", ns), "Failed", "test/later:v1", "next try in")
	c.answers(t, ns, "web", "msg=hello")
	if _, err := c.pushImage("test/later:v1", "VERSION=later"); err != nil {
		t.Fatal(err)
	}
	// Nobody asks again: the retry with back-off finds it.
	c.awaitApp(t, ns, "shop", "the image was found by the retry", func(a *v1alpha1.Application) bool {
		return a.Status.DeployedCommit == bad && a.Status.Phase == v1alpha1.PhaseReady
	})
	c.answers(t, ns, "web", "later from")

	// A registry that is down: a port that nothing listens on.
	r.commit("registry down", shop{image: "127.0.0.1:1/test/web:v1", message: "down"}.files())
	contains(t, r.push(), "127.0.0.1:1", "what ran before runs on")
	c.deployed(t, ns, bad)
	c.answers(t, ns, "web", "later from")
}

// TestBadRemote follows repositories elsewhere that misbehave.
func TestBadRemote(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "badremote")
	cm := func(v string) map[string]string {
		return map[string]string{"cm.yaml": strings.Replace(goodConfigMap, "value", v, 1)}
	}
	sourceFails := func(app, what string) *v1alpha1.Application {
		t.Helper()
		return c.awaitApp(t, ns, app, "status says "+what, func(a *v1alpha1.Application) bool {
			for _, cond := range a.Status.Conditions {
				if cond.Type == v1alpha1.ConditionSourceReady && cond.Status == metav1.ConditionFalse {
					return strings.Contains(cond.Message, what)
				}
			}
			return false
		})
	}
	ready := func(app, sha string) {
		t.Helper()
		c.awaitApp(t, ns, app, "commit "+sha+" is Ready", func(a *v1alpha1.Application) bool {
			return a.Status.DeployedCommit == sha && a.Status.Phase == v1alpha1.PhaseReady
		})
	}
	t.Run("empty", func(t *testing.T) {
		r := newRepo(t, c)
		c.ok(t, "app", "create", "empty", "-n", ns, "--repo", "file://"+r.dir, "--interval", "1s")
		sourceFails("empty", "empty")
		ready("empty", r.commit("first", map[string]string{"cm.yaml": strings.Replace(goodConfigMap, "good", "empty", 1)}))
	})
	t.Run("branch disappears and history is rewritten", func(t *testing.T) {
		r := newRepo(t, c)
		first := r.commit("first", cm("first"))
		second := r.commit("second", cm("second"))
		c.ok(t, "app", "create", "shop", "-n", ns, "--repo", "file://"+r.dir, "--interval", "1s")
		ready("shop", second)
		r.git("branch", "-m", "main", "elsewhere")
		app := sourceFails("shop", "main")
		if app.Status.DeployedCommit != second {
			t.Errorf("deployed is %s, want %s", app.Status.DeployedCommit, second)
		}
		// It comes back without the deployed commit, which git then forgets.
		r.git("checkout", "-q", "-b", "main", first)
		third := r.commit("third", cm("third"))
		r.git("branch", "-D", "elsewhere")
		r.git("reflog", "expire", "--expire=now", "--all")
		r.git("gc", "-q", "--prune=now")
		ready("shop", third)
		c.ok(t, "rollback", "shop", "-n", ns, "--to-revision", second)
		m, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), "good", metav1.GetOptions{})
		if err != nil || m.Data["key"] != "second" {
			t.Errorf("the dropped commit was not restored: %v %v", m.Data, err)
		}
	})
	t.Run("force-push", func(t *testing.T) {
		r := newRepo(t, c)
		r.add(ns, "pushed")
		name := func(v string) map[string]string {
			return map[string]string{"cm.yaml": strings.Replace(strings.Replace(goodConfigMap, "good", "pushed", 1), "value", v, 1)}
		}
		first := r.commit("first", name("first"))
		r.deploy()
		second := r.commit("second", name("second"))
		r.deploy()
		r.git("reset", "-q", "--hard", first)
		r.commit("instead", name("instead"))
		contains(t, r.push("--force"), "deployed: ")
		c.ok(t, "rollback", "pushed", "-n", ns, "--to-revision", second)
		m, err := c.k.CoreV1().ConfigMaps(ns).Get(t.Context(), "pushed", metav1.GetOptions{})
		if err != nil || m.Data["key"] != "second" {
			t.Errorf("the dropped commit was not restored: %v %v", m.Data, err)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		c.ok(t, "app", "create", "nowhere", "-n", ns, "--repo", "file:///nonexistent/repo", "--interval", "1s")
		sourceFails("nowhere", "/nonexistent/repo")
		res := c.run("sync", "nowhere", "-n", ns)
		if res.code != 1 || !strings.Contains(res.stderr, "/nonexistent/repo") {
			t.Errorf("sync of a repository that is not there: %s", res)
		}
	})
}

// TestHugeFile follows a repository with a YAML file of 200 MB: refused quickly and
// without holding it in memory.
func TestHugeFile(t *testing.T) {
	c := suite.shared
	ns := c.namespace(t, "huge")
	r := newRepo(t, c)
	r.commit("good", map[string]string{"cm.yaml": goodConfigMap})
	c.ok(t, "app", "create", "shop", "-n", ns, "--repo", "file://"+r.dir, "--interval", "1s")
	good := c.awaitApp(t, ns, "shop", "it is Ready", func(a *v1alpha1.Application) bool { return a.Status.Phase == v1alpha1.PhaseReady })
	line := []byte("# " + strings.Repeat("0123456789abcdef", 64) + "\n")
	if err := os.WriteFile(filepath.Join(r.dir, "huge.yaml"), bytes.Repeat(line, 200<<20/len(line)), 0o644); err != nil {
		t.Fatal(err)
	}
	before := residentMiB(t, c.up.cmd.Process.Pid)
	sha := r.commit("huge", nil)
	app := c.awaitApp(t, ns, "shop", "the file is refused", func(a *v1alpha1.Application) bool {
		return a.Status.LastSync != nil && a.Status.LastSync.Commit == sha && a.Status.LastSync.Outcome == v1alpha1.OutcomeFailed
	})
	contains(t, app.Status.LastSync.Message, "huge.yaml", "a manifest may have 4")
	if app.Status.DeployedCommit != good.Status.DeployedCommit {
		t.Errorf("deployed is %s, want %s", app.Status.DeployedCommit, good.Status.DeployedCommit)
	}
	if after := residentMiB(t, c.up.cmd.Process.Pid); after > before+150 {
		t.Errorf("the server grew from %d to %d MiB", before, after)
	}
}

// residentMiB is the most memory that a process has had so far.
func residentMiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}

// TestWebhook shows that a call with the right signature makes the reconciler look,
// and that one with a wrong signature does nothing.
func TestWebhook(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "webhook")
	r := newRepo(t, c)
	first := r.commit("first", map[string]string{"cm.yaml": goodConfigMap})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "hook"}, StringData: map[string]string{"token": "s3cret"}}
	if _, err := c.k.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.apply(t, ns, fmt.Sprintf(`apiVersion: gitk8s.dev/v1alpha1
kind: Application
metadata: {name: shop}
spec:
  source: {repoURL: "file://%s"}
  sync: {interval: 0s, webhookSecretRef: {name: hook}}
`, r.dir))
	await := func(sha string) {
		t.Helper()
		c.awaitApp(t, ns, "shop", sha+" is deployed", func(a *v1alpha1.Application) bool {
			return a.Status.DeployedCommit == sha && a.Status.Phase == v1alpha1.PhaseReady
		})
	}
	await(first)
	second := r.commit("second", map[string]string{"cm.yaml": strings.Replace(goodConfigMap, "value", "second", 1)})
	body := `{"ref":"refs/heads/main"}`
	call := func(header, value, event, kind string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.info.Git+"/hooks/"+ns+"/shop", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(event, kind)
		req.Header.Set(header, value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	sign := func(key string) string {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(body))
		return "sha256=" + hex.EncodeToString(mac.Sum(nil))
	}
	if code, text := call("X-Hub-Signature-256", sign("wrong"), "X-GitHub-Event", "push"); code != http.StatusForbidden {
		t.Errorf("a wrong signature was answered with %d %s", code, text)
	}
	c.deployed(t, ns, first)
	if code, text := call("X-Hub-Signature-256", sign("s3cret"), "X-GitHub-Event", "push"); code != http.StatusAccepted {
		t.Errorf("the right signature was answered with %d %s", code, text)
	}
	await(second)
	third := r.commit("third", map[string]string{"cm.yaml": goodConfigMap})
	if code, text := call("X-Gitlab-Token", "s3cret", "X-Gitlab-Event", "Push Hook"); code != http.StatusAccepted {
		t.Errorf("GitLab's token was answered with %d %s", code, text)
	}
	await(third)
	var trigger string
	for _, rev := range c.revisions(t, ns, "shop") {
		if rev.Spec.Commit == third {
			trigger = rev.Status.Trigger
		}
	}
	if trigger != "webhook" {
		t.Errorf("history says %q triggered it, want webhook", trigger)
	}
}
