package e2e

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// TestFollow follows a repository over https, with the token and the certificate
// authority of a Secret, by its interval alone: a commit deploys without a push.
func TestFollow(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "follow")
	r := newRepo(t, c)
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	git := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + r.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	host := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, token, _ := req.BasicAuth(); token != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		git.ServeHTTP(w, req)
	}))
	defer host.Close()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "shop-git"}, StringData: map[string]string{
		"token":  "guess",
		"ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw})),
	}}
	if _, err := c.k.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	first := r.commit("first", map[string]string{"cm.yaml": goodConfigMap})
	c.apply(t, ns, fmt.Sprintf(`apiVersion: gitk8s.dev/v1alpha1
kind: Application
metadata: {name: shop}
spec:
  source: {repoURL: "%s/.git", secretRef: {name: shop-git}}
  sync: {interval: 1s}
`, host.URL))
	c.awaitApp(t, ns, "shop", "the wrong token is told", func(a *v1alpha1.Application) bool {
		for _, cond := range a.Status.Conditions {
			if cond.Type == v1alpha1.ConditionSourceReady && cond.Status == metav1.ConditionFalse {
				return strings.Contains(cond.Message, "does not accept the credentials") && strings.Contains(cond.Message, host.URL)
			}
		}
		return false
	})
	secret.StringData["token"] = "s3cret"
	if _, err := c.k.CoreV1().Secrets(ns).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	deployed := func(sha string) {
		t.Helper()
		c.awaitApp(t, ns, "shop", sha+" is deployed", func(a *v1alpha1.Application) bool {
			return a.Status.DeployedCommit == sha && a.Status.Phase == v1alpha1.PhaseReady
		})
	}
	deployed(first)
	second := r.commit("second", map[string]string{"cm.yaml": strings.Replace(goodConfigMap, "value", "second", 1)})
	deployed(second)
	for _, rev := range c.revisions(t, ns, "shop") {
		if rev.Spec.Commit == second && rev.Status.Trigger != "interval" {
			t.Errorf("history says %q triggered it, want interval", rev.Status.Trigger)
		}
	}
}
