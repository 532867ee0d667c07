package agent

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestLifecycleWithContainers goes through what pods ask of the node they run on,
// with real containers by a real API server.
func TestLifecycleWithContainers(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	r := newRealNode(t, plane, "node-l")
	r.ready()
	ns := r.namespace("lifecycle")
	for _, part := range []struct {
		name string
		run  func(r *realNode, ns string)
	}{
		{"ephemeral containers", (*realNode).testEphemeral},
		{"attach", (*realNode).testAttach},
		{"namespaces", (*realNode).testNamespaces},
		{"seccomp", (*realNode).testSeccomp},
		{"tokens", (*realNode).testTokens},
		{"storage", (*realNode).testStorage},
		{"pressure", (*realNode).testPressure},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(r.sub(t), ns) })
	}
}

func (r *realNode) testEphemeral(ns string) {
	pods := r.admin.CoreV1().Pods(ns)
	ctx := context.Background()
	r.pod(ns, "look", func(p *v1.Pod) { p.Spec.Containers[0].Args = []string{"sleep"} })
	p := r.untilReady(ns, "look")
	_, err := r.admin.CoreV1().ConfigMaps(ns).Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"A": "b"}}, metav1.CreateOptions{})
	r.must(err)
	patch := `{"spec": {"ephemeralContainers": [{"name": "debug", "image": "app:v1", "args": ["processes"], "targetContainerName": "main",
		"envFrom": [{"configMapRef": {"name": "late"}}]}]}}`
	_, err = pods.Patch(ctx, "look", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "ephemeralcontainers")
	r.must(err)
	ended := func(i int) func(*v1.Pod) bool {
		return func(p *v1.Pod) bool {
			list := p.Status.EphemeralContainerStatuses
			return len(list) > i && list[i].State.Terminated != nil
		}
	}
	p = r.until(ns, "look", "the debug container ended", ended(0))
	if st := p.Status.EphemeralContainerStatuses[0].State.Terminated; st.ExitCode != 0 || !podReady(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		r.t.Errorf("status: %+v", p.Status)
	}
	if got := r.logs(ns, "look", v1.PodLogOptions{Container: "debug"}); !strings.Contains(got, "app sleep") || !strings.Contains(got, "app processes") {
		r.t.Errorf("it sees %q", got)
	}
	// Without a target it sees its own processes alone; the other stays as it was.
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, v1.EphemeralContainer{
		EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "alone", Image: "app:v1", Args: []string{"processes"}},
	})
	p, err = pods.UpdateEphemeralContainers(ctx, "look", p, metav1.UpdateOptions{})
	r.must(err)
	if p.Spec.EphemeralContainers[1].TerminationMessagePath == "" {
		r.t.Error("no defaults were set")
	}
	p = r.until(ns, "look", "the second container ended", ended(1))
	if got := r.logs(ns, "look", v1.PodLogOptions{Container: "alone"}); strings.Contains(got, "app sleep") {
		r.t.Errorf("without a target it sees %q", got)
	}
	p.Spec.EphemeralContainers = p.Spec.EphemeralContainers[:1]
	if _, err = pods.UpdateEphemeralContainers(ctx, "look", p, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not be removed") {
		r.t.Errorf("taking one away: %v", err)
	}
	r.deletePod(ns, "look", 5)
	r.until(ns, "look", "gone", gone)
}

// dialogue is an attached client: what is said to it and what it was shown.
type dialogue struct {
	in   *io.PipeWriter
	mu   sync.Mutex
	text strings.Builder
	done chan error
}

func (d *dialogue) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *dialogue) shown() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

func (r *realNode) attach(ns, pod string, tty bool, websocket bool) *dialogue {
	r.t.Helper()
	req := r.admin.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("attach").
		VersionedParams(&v1.PodAttachOptions{Container: "main", Stdin: true, Stdout: true, Stderr: !tty, TTY: tty}, scheme.ParameterCodec)
	ex, err := remotecommand.NewSPDYExecutor(r.config, http.MethodPost, req.URL())
	if websocket {
		ex, err = remotecommand.NewWebSocketExecutor(r.config, http.MethodGet, req.URL().String())
	}
	r.must(err)
	in, w := io.Pipe()
	d := &dialogue{in: w, done: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	r.t.Cleanup(cancel)
	o := remotecommand.StreamOptions{Stdin: in, Stdout: d, Tty: tty}
	if !tty {
		o.Stderr = d
	}
	go func() { d.done <- ex.StreamWithContext(ctx, o) }()
	return d
}

func (r *realNode) testAttach(ns string) {
	for name, tt := range map[string]struct{ tty, websocket bool }{
		"spdy": {}, "websocket": {websocket: true}, "spdy-tty": {tty: true}, "websocket-tty": {tty: true, websocket: true},
	} {
		r.pod(ns, name, func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyNever
			c := &p.Spec.Containers[0]
			c.Args, c.Stdin, c.StdinOnce, c.TTY = []string{"ask"}, true, true, tt.tty
		})
		r.untilReady(ns, name)
		d := r.attach(ns, name, tt.tty, tt.websocket)
		_, err := io.WriteString(d.in, "Ada\n")
		r.must(err)
		eventually(r.t, name+": the answer", func() bool {
			got := strings.ReplaceAll(d.shown(), "\r", "")
			return strings.Contains(got, "hello Ada\nname? ")
		})
		if tt.tty {
			_, err = io.WriteString(d.in, "\x04")
		} else {
			err = d.in.Close()
		}
		r.must(err)
		if err := <-d.done; err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
		p := r.until(ns, name, "ended", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed })
		if p.Status.Phase != v1.PodSucceeded || !strings.Contains(d.shown(), "end of input") {
			r.t.Errorf("%s: %s, shown %q", name, p.Status.Phase, d.shown())
		}
		log, err := os.ReadFile(filepath.Join(r.cfg.DataDir, "logs", "pods", ns+"_"+name+"_"+string(p.UID), "main", "0.log"))
		if err != nil || !strings.Contains(string(log), "hello Ada") {
			r.t.Errorf("%s: the log lacks it: %s, %v", name, log, err)
		}
	}
}

func (r *realNode) testNamespaces(ns string) {
	r.pod(ns, "together", func(p *v1.Pod) {
		p.Spec.ShareProcessNamespace = ptr.To(true)
		p.Spec.Containers[0].Args = []string{"sleep"}
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "other", Image: "app:v1", Args: []string{"serve", "127.0.0.1:8099"}})
	})
	r.untilReady(ns, "together")
	if got, err := r.exec(ns, "together", "app", "processes"); err != nil || !strings.Contains(got, "app sleep") || !strings.Contains(got, "app serve") {
		r.t.Errorf("shareProcessNamespace: %s, %v", got, err)
	}
	r.deletePod(ns, "together", 5)
	if got := r.output(ns, "host", func(p *v1.Pod) { p.Spec.HostPID, p.Spec.HostIPC = true, true }, "processes"); !strings.Contains(got, "agent.test") {
		r.t.Errorf("hostPID: %s", got)
	}
	named := func(p *v1.Pod) {
		p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "sub", ptr.To(true)
	}
	if got := r.output(ns, "fqdn", named, "id"); !strings.HasSuffix(got, " fqdn.sub.lifecycle.svc.cluster.local\n") {
		r.t.Errorf("setHostnameAsFQDN: %s", got)
	}
	with := func(name, value string) func(p *v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: name, Value: value}}}
		}
	}
	if got := r.output(ns, "safe", with("net.ipv4.ip_unprivileged_port_start", "0"), "files", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "0\n" {
		r.t.Errorf("a safe sysctl: %q", got)
	}
	r.pod(ns, "unsafe", with("kernel.msgmax", "1"))
	p := r.until(ns, "unsafe", "Failed", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if len(p.Status.ContainerStatuses) != 0 || p.Status.Reason != "SysctlForbidden" || p.Status.Message != `Pod was rejected: forbidden sysctl: "kernel.msgmax" not allowlisted` {
		r.t.Errorf("an unsafe sysctl: %s: %s", p.Status.Reason, p.Status.Message)
	}
}

func (r *realNode) testSeccomp(ns string) {
	with := func(p *v1.Pod) {
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr.To("profiles/no-mkdir.json")}}
	}
	dir := filepath.Join(r.cfg.DataDir, "seccomp", "profiles")
	r.pod(ns, "lacks", func(p *v1.Pod) {
		with(p)
		p.Spec.Containers[0].Args = []string{"mkdir", "/tmp/d"}
		p.Spec.RestartPolicy = v1.RestartPolicyNever
	})
	p := r.until(ns, "lacks", "it says what is missing", func(p *v1.Pod) bool { return waitingReason(p) == "CreateContainerError" })
	if m := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(m, "cannot load seccomp profile") || !strings.Contains(m, "no-mkdir.json") {
		r.t.Errorf("the message is %q", m)
	}
	r.deletePod(ns, "lacks", 0)
	r.must(os.MkdirAll(dir, 0o755))
	r.must(os.WriteFile(filepath.Join(dir, "no-mkdir.json"), []byte(`{"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o644))
	if got := r.output(ns, "filtered", with, "mkdir", "/tmp/d"); !strings.Contains(got, "operation not permitted") {
		r.t.Errorf("with the profile: %q", got)
	}
	if got := r.output(ns, "default", nil, "mkdir", "/tmp/d"); got != "<nil>\n" {
		r.t.Errorf("without: %q", got)
	}
}

// testTokens begins before there is a service account, and lets a token age.
func (r *realNode) testTokens(ns string) {
	ctx := context.Background()
	r.pod(ns, "known", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "id", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
			{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}},
			{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "vault", Audience: "vault", ExpirationSeconds: ptr.To[int64](600)}},
		}}}}}
		c := &p.Spec.Containers[0]
		c.Args = []string{"sleep"}
		c.VolumeMounts = []v1.VolumeMount{{Name: "id", MountPath: "/id"}}
	})
	_, err := r.admin.CoreV1().ServiceAccounts(ns).Create(ctx, &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	r.must(err)
	p := r.untilReady(ns, "known")
	read := func(file string) string {
		r.t.Helper()
		out, err := r.exec(ns, "known", "app", "files", "/id/"+file)
		r.must(err)
		return out
	}
	review := func(token, audience string) authenticationv1.TokenReviewStatus {
		r.t.Helper()
		req := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		if audience != "" {
			req.Spec.Audiences = []string{audience}
		}
		got, err := r.admin.AuthenticationV1().TokenReviews().Create(ctx, req, metav1.CreateOptions{})
		r.must(err)
		return got.Status
	}
	first, vault := read("token"), read("vault")
	if st := review(first, ""); !st.Authenticated || st.User.Username != "system:serviceaccount:"+ns+":default" || st.User.Extra["authentication.kubernetes.io/pod-uid"][0] != string(p.UID) {
		r.t.Errorf("the token's review: %+v", st)
	}
	if !review(vault, "vault").Authenticated || review(vault, "").Authenticated {
		r.t.Error("a token is not for its audience alone")
	}
	tokens := r.agent.tokens
	tokens.mu.Lock()
	for key, t := range tokens.tokens {
		if key.audience == "" {
			t.issued = t.issued.Add(-48 * time.Minute)
			t.expires = t.issued.Add(time.Hour)
			tokens.tokens[key] = t
		}
	}
	tokens.mu.Unlock()
	r.agent.renewTokens()
	eventually(r.t, "another token after 80 % of its life", func() bool { return read("token") != first })
	if read("vault") != vault || !review(read("token"), "").Authenticated {
		r.t.Error("the other token has changed, or the new one is not valid")
	}
	r.deletePod(ns, "known", 0)
	r.until(ns, "known", "gone", gone)
	eventually(r.t, "nothing is kept of its tokens", func() bool {
		tokens.mu.Lock()
		defer tokens.mu.Unlock()
		return len(tokens.tokens) == 0
	})
}

func TestTokenStale(t *testing.T) {
	for _, tt := range []struct {
		life, age time.Duration
		want      bool
	}{
		{time.Hour, 47 * time.Minute, false}, {time.Hour, 48 * time.Minute, true}, {time.Hour, 2 * time.Hour, true},
		{1000 * time.Hour, 23 * time.Hour, false}, {1000 * time.Hour, 24 * time.Hour, true},
		{time.Hour, -30 * time.Second, false}, {time.Hour, -2 * time.Minute, true}, // the clock was put back
	} {
		if got := (podToken{issued: t0, expires: t0.Add(tt.life)}).stale(t0.Add(tt.age)); got != tt.want {
			t.Errorf("%s old of %s: %v", tt.age, tt.life, got)
		}
	}
}

// testStorage fills a volume, then a root filesystem.
func (r *realNode) testStorage(ns string) {
	evicted := func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed }
	for name, tt := range map[string]struct{ file, want string }{
		"volume": {"/v/f", `Usage of EmptyDir volume "v" exceeds the limit "64Ki". `},
		"layer":  {"/tmp/f", `Container main exceeded its local ephemeral storage limit "64Ki". `},
	} {
		r.pod(ns, name, func(p *v1.Pod) {
			c := &p.Spec.Containers[0]
			c.Args = []string{"sleep"}
			if name == "volume" {
				p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("64Ki"))}}}}
				c.VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
			} else {
				c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("64Ki")}
				// So that the pod's sum is not what is exceeded.
				p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "roomy", Image: "app:v1", Args: []string{"sleep"}, Resources: v1.ResourceRequirements{
					Limits: v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse("1Gi")},
				}})
			}
		})
		r.untilReady(ns, name)
		r.agent.checkStorage(context.Background())
		if out, err := r.exec(ns, name, "app", "fill", tt.file, "102400"); err != nil || out != "<nil>\n" {
			r.t.Fatalf("%s: %s, %v", name, out, err)
		}
		r.agent.checkStorage(context.Background())
		p := r.until(ns, name, "Failed", evicted)
		c := findCondition(p.Status.Conditions, v1.DisruptionTarget)
		if p.Status.Reason != "Evicted" || p.Status.Message != tt.want || c == nil || c.Reason != "TerminationByKubelet" {
			r.t.Errorf("%s: %s: %s, %+v", name, p.Status.Reason, p.Status.Message, c)
		}
		r.deletePod(ns, name, 0)
	}
}
