package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// TestUnits: what the units for systemd run is a command of this program, with flags
// and arguments that it takes.
func TestUnits(t *testing.T) {
	files, err := filepath.Glob("../../manifests/install/*.service")
	if err != nil || len(files) < 2 {
		t.Fatalf("units: %q %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if key != "ExecStart" {
				continue
			}
			found++
			words := strings.Fields(value)
			if words[0] != "/usr/local/bin/gitk8s" {
				t.Errorf("%s runs %s", f, words[0])
			}
			if _, err := parseCommand(words[1:]); err != nil {
				t.Errorf("%s: %s: %v", f, value, err)
			}
		}
		if found != 1 {
			t.Errorf("%s has %d commands", f, found)
		}
	}
	if _, err := parseCommand([]string{"agent", "--no-such-flag"}); err == nil {
		t.Error("a flag that does not exist was taken")
	}
}

// TestUnitStop: stopping the agent's unit tells the worker of a shutdown only when
// there is one, and then waits for it.
func TestUnitStop(t *testing.T) {
	b, err := os.ReadFile("../../manifests/install/gitk8s-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(b), "\nExecStop=/bin/sh -c '")
	script, _, ok := strings.Cut(script, "'\n")
	if !ok {
		t.Fatal("the unit has no ExecStop that is a script")
	}
	script = strings.ReplaceAll(script, "$$", "$") // as systemd does
	for state, want := range map[string]syscall.Signal{"running": syscall.SIGKILL, "stopping": syscall.SIGPWR} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho "+state+"\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		worker := exec.Command("sleep", "60")
		if err := worker.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = worker.Wait()
		}()
		stop := exec.Command("/bin/sh", "-c", script)
		stop.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), fmt.Sprintf("MAINPID=%d", worker.Process.Pid)}
		if out, err := stop.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", state, err, out)
		}
		_ = worker.Process.Kill() // what systemd does next, harsher
		<-ended
		if got := worker.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != want {
			t.Errorf("%s: the worker ended by %s, want %s", state, got, want)
		}
	}
}

func parseCommand(args []string) (*cobra.Command, error) {
	root := newRoot(stdio{&bytes.Buffer{}, &bytes.Buffer{}, &bytes.Buffer{}})
	cmd, rest, err := root.Find(args)
	if err != nil {
		return nil, err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return nil, err
	}
	return cmd, cmd.ValidateArgs(cmd.Flags().Args())
}

// TestEnrolledConfig: the keys of the file that enroll writes are flags of the agent,
// which puts them below its command line and above the machine's file.
func TestEnrolledConfig(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"token": "secret", "config.yaml": "name: from-etc\nlog-level: debug\neviction-hard: \"\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	node := filepath.Join(dir, "nodes", "one")
	if err := os.MkdirAll(node, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeWorkerConfig(Info{DataDir: dir, Registry: "10.0.0.1:5000"}, node, "one", []netip.Addr{netip.MustParseAddr("10.0.0.2")}); err != nil {
		t.Fatal(err)
	}
	written := map[string]string{}
	b, err := os.ReadFile(filepath.Join(node, workerConfig))
	if err == nil {
		err = yaml.Unmarshal(b, &written)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := &env{v: newViper()}
	cmd := newAgent(e)
	cmd.Flags().String("config", "", "")
	for key := range written {
		if cmd.Flags().Lookup(key) == nil {
			t.Errorf("%s is no flag of the agent", key)
		}
	}
	if err := cmd.ParseFlags([]string{"--config", filepath.Join(dir, "config.yaml"), "--registry", "10.0.0.9:5000"}); err != nil {
		t.Fatal(err)
	}
	if err := readConfig(e.v, cmd); err != nil {
		t.Fatal(err)
	}
	if err := e.readWorkerConfig(node); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"name": "one", "node-ip": "10.0.0.2", "registry": "10.0.0.9:5000", "log-level": "debug", "eviction-hard": "",
		"registry-token-file": filepath.Join(node, workerToken),
	} {
		if got := e.v.GetString(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

// TestCompletion: every shell gets a script, and the script's question for the next
// word is answered with our commands.
func TestCompletion(t *testing.T) {
	run := func(args ...string) string {
		var out, errOut bytes.Buffer
		root := newRoot(stdio{&bytes.Buffer{}, &out, &errOut})
		root.SetArgs(args)
		if err := root.Execute(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, &errOut)
		}
		return out.String()
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := run("completion", shell); !strings.Contains(out, "gitk8s") {
			t.Errorf("the script for %s: %q", shell, out)
		}
	}
	if out := run("__complete", "ro"); !strings.Contains(out, "rollback\t") {
		t.Errorf("ro is completed to %q", out)
	}
}
