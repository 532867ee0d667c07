package apiserver_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	kubectlcmd "k8s.io/kubectl/pkg/cmd"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// asKubectl makes this test binary the kubectl that gitk8s contains.
const asKubectl = "GITK8S_TEST_KUBECTL"

func TestMain(m *testing.M) {
	if os.Getenv(asKubectl) != "" {
		command := kubectlcmd.NewDefaultKubectlCommand()
		if err := command.Execute(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// kubectl runs a kubectl and returns what it prints.
type kubectl func(ctx context.Context, stdin string, args ...string) ([]byte, error)

// kubectls are the kubectl of the module, and the machine's own where it has one.
func kubectls(t *testing.T, kubeconfig string) map[string]kubectl {
	t.Helper()
	home := t.TempDir()
	run := func(path string, env ...string) kubectl {
		return func(ctx context.Context, stdin string, args ...string) ([]byte, error) {
			cmd := exec.CommandContext(ctx, path, append([]string{"--kubeconfig", kubeconfig}, args...)...)
			cmd.Env = append(append(os.Environ(), "HOME="+home), env...)
			cmd.Stdin = strings.NewReader(stdin)
			return cmd.CombinedOutput()
		}
	}
	out := map[string]kubectl{"own": run(os.Args[0], asKubectl+"=1")}
	if path, err := exec.LookPath("kubectl"); err == nil {
		out["installed"] = run(path)
	}
	return out
}

const manifests = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: gitk8s.local/web:v1
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /, port: http}}
        resources: {limits: {memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: gitk8s.dev/v1alpha1
kind: Application
metadata: {name: shop}
spec: {source: {path: deploy}}
`

// TestKubectl runs an ordinary kubectl against the server.
func TestKubectl(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	for name, run := range kubectls(t, cp.Kubeconfig) {
		t.Run(name, func(t *testing.T) { testKubectl(t, run) })
	}
}

func testKubectl(t *testing.T, run kubectl) {
	file, review := filepath.Join(t.TempDir(), "all.yaml"), filepath.Join(t.TempDir(), "review.yaml")
	const asked = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"user":"nobody","resourceAttributes":{"verb":"get","resource":"pods"}}}`
	if err := errors.Join(os.WriteFile(file, []byte(manifests), 0o600), os.WriteFile(review, []byte(asked), 0o600)); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		args string
		want []string
		fail bool
	}{
		{args: "apply -f FILE", want: []string{"deployment.apps/web created", "service/web created", "application.gitk8s.dev/shop created"}},
		{args: "apply -f FILE", want: []string{"deployment.apps/web unchanged", "service/web unchanged", "application.gitk8s.dev/shop unchanged"}},
		{args: "diff -f FILE", want: []string{""}},
		{args: "apply --server-side --force-conflicts -f FILE", want: []string{"deployment.apps/web serverside-applied"}},
		{args: "diff --server-side --force-conflicts -f FILE", want: []string{""}},
		{args: "get all -o wide", want: []string{"deployment.apps/web", "0/2", "gitk8s.local/web:v1", "app=web", "service/web", "80/TCP", "application.gitk8s.dev/shop", "Pending"}},
		{args: "get app", want: []string{"NAME   COMMIT   PHASE     OBJECTS   HELD   AGE"}},
		{args: "get app shop -o jsonpath={.spec.source.ref}/{.spec.sync.interval}/{.spec.history.limit}", want: []string{"main/30s/50"}},
		{args: "scale deployment web --replicas=3", want: []string{"scaled"}},
		{args: "wait --for=jsonpath={.spec.replicas}=3 deployment/web --timeout=10s", want: []string{"condition met"}},
		{args: `patch deployment web -p {"spec":{"paused":true}}`, want: []string{"patched"}},
		{args: `patch deployment web --type=json -p [{"op":"replace","path":"/spec/template/spec/containers/0/name","value":""}]`, want: []string{"spec.template.spec.containers[0].name: Required value"}, fail: true},
		{args: "set image deployment/web web=gitk8s.local/web:v2 --dry-run=server -o jsonpath={.spec.template.spec.containers[0].image}", want: []string{"gitk8s.local/web:v2"}},
		{args: "run one --image=gitk8s.local/web:v1", want: []string{"pod/one created"}},
		{args: "get pod one", want: []string{"NAME   READY   STATUS    RESTARTS   AGE", "one    0/1     Pending   0"}},
		{args: "label pod one a=b", want: []string{"labeled"}},
		{args: "delete pod one", want: []string{`pod "one" deleted`}},
		{args: "explain application.spec.sync.schedule", want: []string{"five-field cron expression"}},
		{args: "explain deployment.spec.strategy --recursive", want: []string{"maxSurge"}},
		{args: "api-resources", want: []string{"applications", "app ", "revisions", "rev ", "deployments", "endpointslices"}},
		{args: "auth can-i --list", want: []string{"*.*"}},
		{args: "create -f REVIEW -o jsonpath={.status}", want: []string{`"allowed":false`}},
		{args: "auth can-i delete pods --as=nobody", want: []string{"no"}, fail: true},
		{args: "get events,leases,cm,secrets,sa,nodes,rs,controllerrevisions,endpoints,revisions -A", want: []string{"endpoints/kubernetes"}},
		{args: "get --raw /openapi/v3", want: []string{"apis/gitk8s.dev/v1alpha1"}},
		{args: "get --raw /openapi/v2", want: []string{"io.k8s.api.apps.v1.Deployment"}},
		{args: "delete -f FILE", want: []string{`"shop" deleted`}},
	}
	for _, step := range steps {
		t.Run(step.args, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			out, err := run(ctx, "", strings.Fields(strings.NewReplacer("FILE", file, "REVIEW", review).Replace(step.args))...)
			if (err != nil) != step.fail {
				t.Fatalf("%v: %s", err, out)
			}
			for _, want := range step.want {
				if !strings.Contains(string(out), want) || (want == "" && len(out) > 0) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}
