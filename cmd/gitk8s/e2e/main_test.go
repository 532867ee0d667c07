package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// suite is what all tests share.
var suite struct {
	dir    string // temporary, removed at the end
	bin    string // gitk8s
	server []byte // the program in the images
	shared *cluster
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == withoutNFTables {
		fmt.Fprintln(os.Stderr, runWithoutNFTables(os.Args[2:]))
		os.Exit(1)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if suite.bin, err = binary(); err != nil {
		return 1, err
	}
	if suite.dir, err = os.MkdirTemp("", "gitk8s-e2e-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(suite.dir)
	if suite.server, err = buildServer(suite.dir); err != nil {
		return 1, err
	}
	c := newCluster("shared")
	suite.shared = c
	defer func() {
		if code != 0 || err != nil {
			c.dump(os.Stderr) // first: what the workers have to say is removed with them
		}
		if e := c.destroy(); e != nil {
			c.dump(os.Stderr)
			err = e
		}
	}()
	if err := c.start(); err != nil {
		return 1, err
	}
	if err := c.pushImages(); err != nil {
		return 1, err
	}
	code = m.Run()
	// The last of what is tested: Ctrl-C stops the workloads and leaves nothing.
	if e := c.interrupt(); e != nil {
		return code, e
	}
	return code, c.leftovers()
}

// binary finds the program under test.
func binary() (string, error) {
	path := os.Getenv("GITK8S_BIN")
	if path == "" {
		path = filepath.Join("..", "..", "..", "bin", "gitk8s")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(abs); err != nil {
		return "", fmt.Errorf("the program under test is missing: %w; `make build` makes it, GITK8S_BIN names another", err)
	}
	return abs, nil
}

// missing leaves a test out for want of something that `make test` installs. Where
// GITK8S_TEST_TOOLS says that all of it must be there, as CI does, the test fails: nobody
// would notice that it is never run.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("GITK8S_TEST_TOOLS") != "" {
		t.Fatalf("%s is missing, which make test-deps should have installed", what)
	}
	t.Skipf("%s is missing; make test-deps installs it", what)
}

// buildServer builds the program that runs in the tests' containers, or takes the one
// that GITK8S_E2E_SERVER names: a virtual machine has no compiler.
func buildServer(dir string) ([]byte, error) {
	if made := os.Getenv("GITK8S_E2E_SERVER"); made != "" {
		return os.ReadFile(made)
	}
	out := filepath.Join(dir, "server")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w -linkmode external -extldflags -static", "-o", out, "./testdata/server")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build testdata/server: %w\n%s", err, b)
	}
	return os.ReadFile(out)
}
