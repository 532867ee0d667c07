package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestLogs prints and follows the logs of an application with two workloads.
func TestLogs(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "logs")
	r := newRepo(t, c)
	files := map[string]string{}
	for _, name := range []string{"one", "two"} {
		files[name+".yaml"] = fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %q}]}
`, name, testImage)
	}
	r.commit("two workloads", files)
	r.add(ns, "shop")
	r.deploy()
	pods := c.awaitPods(t, ns, "", "both are Ready", func(p []*corev1.Pod) bool { return len(p) == 2 && allReady(p) })
	out := c.ok(t, "logs", "shop", "-n", ns)
	for _, p := range pods {
		contains(t, out, "[pod/"+p.Name+"/main] listening")
	}
	contains(t, c.run("logs", "none", "-n", ns).stderr, "none")

	follow, err := c.launch(suite.bin, "logs", "shop", "-n", ns, "--follow")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = follow.cmd.Process.Kill()
		<-follow.done
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, p := range pods {
		if err := follow.out.await(ctx, "[pod/"+p.Name+"/main] listening"); err != nil {
			t.Fatalf("%v in:\n%s", err, follow.out)
		}
	}
	// What is printed from now on comes, too.
	c.kubectl(t, "delete", "deployment", "--all", "-n", ns, "--wait=false")
	for _, p := range pods {
		if err := follow.out.await(ctx, "[pod/"+p.Name+"/main] stopp"); err != nil {
			t.Fatalf("%v in:\n%s", err, follow.out)
		}
	}
}
