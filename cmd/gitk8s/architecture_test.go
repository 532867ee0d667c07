package main

import (
	"bytes"
	"encoding/json"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "gitk8s.dev/gitk8s/"

type listed struct {
	ImportPath, Dir                string
	Imports                        []string
	GoFiles, TestGoFiles, CgoFiles []string
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles,TestGoFiles,CgoFiles", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// mayImport is who may import whom of ours, and why the rest is kept out. A name
// stands for the folder and everything below it; "itself" is always allowed.
var mayImport = []struct {
	folder string
	ours   []string
	why    string
}{
	{"api", nil, "types are at the bottom: everything may depend on them and they on nothing"},
	{"gitsource", nil, "commits and files know nothing of Kubernetes"},
	{"registry", nil, "images know nothing of Kubernetes"},
	{"history", []string{"api"}, "revisions are records in the API"},
	{"reconciler", []string{"api", "history", "gitsource", "registry"}, "the Git loop reaches a cluster through the Kubernetes API alone, so that it can drive any"},
	{"controlplane/etcd", nil, "the store is behind the API server"},
	{"controlplane/pki", nil, "certificates depend on nothing"},
	{"controlplane/apiserver", []string{"api", "controlplane/etcd", "controlplane/pki"}, "the API server does not know who calls it"},
	{"controlplane/controller", nil, "machinery of controllers: client-go only"},
	{"controlplane/controllers", []string{"controlplane/controller"}, "controllers meet in the API, not in Go"},
	{"controlplane/scheduler", []string{"controlplane/controller"}, "the scheduler meets the others in the API"},
	{"runtime/container", nil, "containers know nothing of Kubernetes"},
	{"runtime/network", nil, "the network knows nothing of pods but their addresses"},
	{"runtime/volume", nil, "volumes are files"},
	{"runtime/probe", nil, "probes are questions to an address"},
	{"runtime/agent", []string{"runtime", "registry"}, "a worker reaches the control plane through the Kubernetes API alone"},
	{"cmd", []string{"api", "controlplane", "gitsource", "history", "reconciler", "registry", "runtime", "cmd"}, "all wiring is here"},
}

func below(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// TestImports keeps docs/architecture.md true.
func TestImports(t *testing.T) {
	for _, p := range listPackages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		known := false
		for _, rule := range mayImport {
			if !below(path, rule.folder) {
				continue
			}
			known = true
			for _, imp := range p.Imports {
				target, ours := strings.CutPrefix(imp, module)
				if !ours || below(target, rule.folder) && !strings.HasPrefix(rule.folder, "controlplane/controllers") {
					continue
				}
				ok := target == path || below(target, path)
				for _, allowed := range rule.ours {
					ok = ok || below(target, allowed)
				}
				if !ok {
					t.Errorf("%s imports %s: %s", path, target, rule.why)
				}
			}
		}
		if !known {
			t.Errorf("%s is in no folder of docs/architecture.md", path)
		}
	}
}

// TestPackageComments: every package says what comes in and what goes out, once.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		comments := 0
		for _, file := range append(p.GoFiles, p.CgoFiles...) {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				comments++
			}
		}
		if comments != 1 && len(p.GoFiles) > 0 {
			t.Errorf("%s has %d package comments, want 1", strings.TrimPrefix(p.ImportPath, module), comments)
		}
	}
}
