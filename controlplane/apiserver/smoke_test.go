package apiserver_test

import (
	"os"
	"os/exec"
	"testing"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

func TestSmoke(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	script := os.Getenv("SCRIPT")
	if script == "" {
		return
	}
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cp.Kubeconfig)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}
