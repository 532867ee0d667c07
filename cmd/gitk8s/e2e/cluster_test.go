package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gitk8s.dev/gitk8s/runtime/network"
)

// startTimeout is far above what a start takes, for slow machines.
const startTimeout = 90 * time.Second

// cluster is one `gitk8s up` and its data directory.
type cluster struct {
	name    string
	dataDir string
	flags   []string // more flags of up
	netns   string   // network namespace of all commands; empty for the machine's own
	bin     string   // gitk8s
	user    int      // who runs gitk8s; 0 for who runs the tests, root
	under   []string // what runs `up`, if it is not run directly
	up      *process
	old     []*process // those killed or stopped before
	info    info
	rest    *rest.Config
	k       kubernetes.Interface
	d       dynamic.Interface
}

// info is what `gitk8s info -o json` prints.
type info struct {
	Kubeconfig   string `json:"kubeconfig"`
	API          string `json:"api"`
	Git          string `json:"git"`
	Registry     string `json:"registry"`
	DockerConfig string `json:"dockerConfig"`
	Metrics      string `json:"metrics"`
	IngressHTTP  string `json:"ingressHTTP"`
	IngressHTTPS string `json:"ingressHTTPS"`
}

func newCluster(name string, flags ...string) *cluster {
	return &cluster{name: name, dataDir: filepath.Join(suite.dir, name), bin: suite.bin, flags: flags}
}

// ownCluster starts a cluster for one test, with the images pushed.
func ownCluster(t *testing.T, flags ...string) *cluster {
	t.Helper()
	c := newCluster(strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), flags...)
	t.Cleanup(func() {
		if t.Failed() {
			var b bytes.Buffer
			c.dump(&b)
			t.Log(b.String())
		}
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	return c
}

// process is a program that runs beside the tests.
type process struct {
	cmd *exec.Cmd
	out *output
	// done is closed when it has ended; err is valid then.
	done chan struct{}
	err  error
}

// output keeps what a process prints and tells who waits for a line.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await returns once the output contains a text.
func (o *output) await(ctx context.Context, text string) error {
	for {
		o.mu.Lock()
		found, changed := strings.Contains(o.text.String(), text), o.changed
		o.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%q was not printed: %w", text, context.Cause(ctx))
		}
	}
}

// launch starts a program beside the tests.
func (c *cluster) launch(args ...string) (*process, error) {
	p := &process{out: newOutput(), done: make(chan struct{})}
	args = inNetNS(c.netns, args)
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = c.env()
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	// A grandchild that keeps our pipe open is a fault: it would make who started
	// `up` in a script wait for ever.
	p.cmd.WaitDelay = 5 * time.Second
	// Ctrl-C of `go test` must reach the tests alone; they end the rest in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: 0}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// start runs `up` until both nodes are Ready.
func (c *cluster) start(args ...string) error {
	flags := append([]string{c.bin, "up", "--data-dir", c.dataDir, "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0", "--log-level", "info"}, c.flags...)
	p, err := c.launch(asUser(c.user, slices.Concat(c.under, flags, args))...)
	if err != nil {
		return err
	}
	if c.up != nil {
		c.old = append(c.old, c.up)
	}
	c.up = p
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	over, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	go func() {
		select {
		case <-p.done:
			lost(fmt.Errorf("it ended: %v", p.err))
		case <-over.Done():
		}
	}()
	if err := p.out.await(over, "nodes Ready after"); err != nil {
		return fmt.Errorf("gitk8s up: %w\n%s", err, p.out)
	}
	return c.connect()
}

// connect reads where the cluster is and makes clients.
func (c *cluster) connect() error {
	r := c.run("info", "-o", "json")
	if r.code != 0 {
		return fmt.Errorf("gitk8s info: %s", r)
	}
	if err := json.Unmarshal([]byte(r.stdout), &c.info); err != nil {
		return err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", c.info.Kubeconfig)
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = -1, -1
	if c.netns != "" {
		cfg.Dial = network.DialIn(c.netns)
	}
	c.rest = cfg
	if c.k, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	c.d, err = dynamic.NewForConfig(cfg)
	return err
}

// kill ends `up` as the out-of-memory killer would.
func (c *cluster) kill() {
	_ = c.up.cmd.Process.Kill()
	<-c.up.done
}

// interrupt is Ctrl-C; it returns when `up` has ended.
func (c *cluster) interrupt() error {
	if err := c.up.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-c.up.done:
	case <-time.After(startTimeout):
		return errors.New("`up` did not end after an interrupt")
	}
	if c.up.err != nil {
		return fmt.Errorf("`up` ended after an interrupt with: %w\n%s", c.up.err, tail(c.up.out.String(), 20))
	}
	return nil
}

// destroy removes everything of the cluster, in whatever state it is.
func (c *cluster) destroy() error {
	if c.up == nil {
		return nil
	}
	r := c.run("down", "--purge")
	if r.code != 0 {
		_ = c.up.cmd.Process.Kill()
		return fmt.Errorf("gitk8s down --purge of %s: %s", c.name, r)
	}
	if _, err := os.Stat(c.dataDir); !errors.Is(err, fs.ErrNotExist) {
		names, _ := filepath.Glob(filepath.Join(c.dataDir, "*"))
		return fmt.Errorf("down --purge left %s behind, with %q", c.dataDir, names)
	}
	return c.leftovers()
}

// id names the cluster's network namespaces and cgroups (docs/contracts.md).
func (c *cluster) id() string {
	sum := sha256.Sum256([]byte(c.dataDir))
	return hex.EncodeToString(sum[:4])
}

// leftovers looks for what the cluster should have removed from the machine.
func (c *cluster) leftovers() error {
	var found []string
	netns, err := filepath.Glob("/run/netns/gitk8s-" + c.id() + "-*")
	if err != nil {
		return err
	}
	for _, n := range netns {
		found = append(found, "network namespace "+n)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], c.dataDir+"/") || strings.Contains(f[4], "gitk8s-"+c.id())) {
			found = append(found, "mount "+f[4])
		}
	}
	for _, pid := range c.processes() {
		found = append(found, fmt.Sprintf("process %d: %s", pid, cmdline(pid)))
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/gitk8s/", "/sys/fs/cgroup/gitk8s/"} {
		dirs, err := filepath.Glob(pattern + c.id())
		if err != nil {
			return err
		}
		for _, d := range dirs {
			found = append(found, "cgroup "+d)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("cluster %s left behind:\n  %s", c.name, strings.Join(found, "\n  "))
	}
	return nil
}

// processes are those that name the data directory: up, workers and shims. What
// runs in containers ends with their shim, whose namespaces it shares.
func (c *cluster) processes() []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err == nil && pid != os.Getpid() && strings.Contains(cmdline(pid), c.dataDir) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func cmdline(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
}

// dump prints what helps to understand a failure.
func (c *cluster) dump(w io.Writer) {
	if c.up == nil {
		return
	}
	for _, p := range append(slices.Clone(c.old), c.up) {
		fmt.Fprintf(w, "--- up of %s, process %d\n%s\n", c.name, p.cmd.Process.Pid, tail(p.out.String(), 80))
	}
	logs, _ := filepath.Glob(filepath.Join(c.dataDir, "nodes", "*", "worker.log"))
	for _, l := range logs {
		if b, err := os.ReadFile(l); err == nil {
			fmt.Fprintf(w, "--- %s\n%s\n", l, tail(string(b), 40))
		}
	}
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}

// env is the environment of the commands: nothing of the user's gets in.
func (c *cluster) env() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "GITK8S_") && !strings.HasPrefix(e, "GIT_") && !strings.HasPrefix(e, "KUBECONFIG=") {
			out = append(out, e)
		}
	}
	return append(out, "GITK8S_DATA_DIR="+c.dataDir, "GITK8S_DNS_UPSTREAM=none", "GITK8S_POD_EGRESS=false", "NO_COLOR=1", "HOME="+filepath.Dir(c.dataDir),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.com")
}

// result is how a command ended.
type result struct {
	args           []string
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("%s\nexit code %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.stdout, r.stderr)
}

// commandTimeout ends a command that hangs.
const commandTimeout = 90 * time.Second

// exec runs a program to its end.
func (c *cluster) exec(dir, stdin string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	args = inNetNS(c.netns, args)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, c.env(), strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := result{args: args, stdout: out.String(), stderr: errOut.String(), code: cmd.ProcessState.ExitCode()}
	if err != nil && r.code <= 0 {
		r.code = -1
		r.stderr += err.Error()
	}
	return r
}

// run runs gitk8s.
func (c *cluster) run(args ...string) result {
	return c.exec("", "", asUser(c.user, append([]string{c.bin}, args...))...)
}

// ok runs gitk8s and fails the test unless it succeeds.
func (c *cluster) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// kubectl runs `gitk8s kubectl` and fails the test unless it succeeds.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.ok(t, append([]string{"kubectl"}, args...)...)
}

// apply is `kubectl apply -f -`.
func (c *cluster) apply(t *testing.T, ns, manifest string) string {
	t.Helper()
	r := c.exec("", manifest, suite.bin, "kubectl", "apply", "-n", ns, "-f", "-")
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout
}

// namespace makes a namespace for a test and removes it with all that is in it.
func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	ctx := t.Context()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.k.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, what := range [][]string{{"get", "all,applications,revisions,endpointslices", "-o", "wide"}, {"get", "events"}, {"get", "applications", "-o", "yaml"}} {
				r := c.run(append([]string{"kubectl", "-n", name}, what...)...)
				t.Log(tail(r.stdout+r.stderr, 120))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// Not waited for: its pods stop while the next tests run.
		if err := c.k.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) && !t.Failed() {
			t.Error(err)
		}
	})
	return name
}
