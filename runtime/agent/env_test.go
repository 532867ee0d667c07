package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	lookup := func(n string) (string, bool) { v, ok := vars[n]; return v, ok }
	tests := []struct{ in, want string }{
		{"", ""}, {"plain", "plain"}, {"$(A)", "1"}, {"x$(A)y$(A)", "x1y1"},
		{"$(B)", "$(A)"}, {"$(NONE)", "$(NONE)"}, {"$(EMPTY)", ""},
		{"$$(A)", "$(A)"}, {"$$$(A)", "$1"}, {"$$$$(A)", "$$(A)"}, {"$$", "$"},
		{"$", "$"}, {"a$", "a$"}, {"$(", "$("}, {"$(A", "$(A"}, {"$A", "$A"}, {"$()", "$()"},
		{"$($(A))", "$($(A))"},
	}
	for _, tt := range tests {
		if got := expand(tt.in, lookup); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$$$", "a$(B)c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// What names no variable that is set comes back, but for the escapes.
		got := expand(s, func(string) (string, bool) { return "", false })
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}

type fakeConfig map[string]any

func (f fakeConfig) ConfigMap(_ context.Context, _, name string) (*v1.ConfigMap, error) {
	if err, ok := f["cm/"+name].(error); ok {
		return nil, err
	}
	cm, _ := f["cm/"+name].(*v1.ConfigMap)
	return cm, nil
}

func (f fakeConfig) Secret(_ context.Context, _, name string) (*v1.Secret, error) {
	s, _ := f["s/"+name].(*v1.Secret)
	return s, nil
}

func TestBuildEnv(t *testing.T) {
	yes := true
	src := fakeConfig{
		"cm/c":      &v1.ConfigMap{Data: map[string]string{"K": "cmv", "bad=key": "x", "A": "fromcm"}},
		"s/s":       &v1.Secret{Data: map[string][]byte{"P": []byte("hush")}},
		"cm/broken": errors.New("forbidden"),
	}
	ref := func(n string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: n} }
	cmKey := func(n, k string, opt *bool) *v1.EnvVarSource {
		return &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: ref(n), Key: k, Optional: opt}}
	}
	sKey := func(n, k string, opt *bool) *v1.EnvVarSource {
		return &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: ref(n), Key: k, Optional: opt}}
	}
	tests := []struct {
		name string
		from []v1.EnvFromSource
		env  []v1.EnvVar
		want []string
		err  string
	}{
		{name: "values refer to earlier ones", env: []v1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)2"}, {Name: "C", Value: "$(D)"}, {Name: "D", Value: "x"}},
			want: []string{"A=1", "B=12", "C=$(D)", "D=x"}},
		{name: "values refer to services", env: []v1.EnvVar{{Name: "A", Value: "$(WEB_SERVICE_HOST)"}}, want: []string{"A=10.43.0.9"}},
		{name: "envFrom with prefix, invalid names left out", from: []v1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("c")}}},
			want: []string{"P_A=fromcm", "P_K=cmv"}},
		{name: "env wins over envFrom", from: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("c")}}},
			env: []v1.EnvVar{{Name: "A", Value: "own"}, {Name: "Z", Value: "$(K)"}}, want: []string{"A=own", "K=cmv", "Z=cmv"}},
		{name: "secret", from: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: ref("s")}}},
			env: []v1.EnvVar{{Name: "Q", ValueFrom: sKey("s", "P", nil)}}, want: []string{"P=hush", "Q=hush"}},
		{name: "optional ones", from: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: ref("no"), Optional: &yes}}},
			env: []v1.EnvVar{{Name: "X", ValueFrom: cmKey("no", "k", &yes)}, {Name: "Y", ValueFrom: cmKey("c", "no", &yes)}, {Name: "A", Value: "1"}}, want: []string{"A=1"}},
		{name: "missing ConfigMap", env: []v1.EnvVar{{Name: "X", ValueFrom: cmKey("no", "k", nil)}}, err: `configmap "no" not found`},
		{name: "missing key", env: []v1.EnvVar{{Name: "X", ValueFrom: sKey("s", "no", nil)}}, err: "couldn't find key no in Secret ns/s"},
		{name: "missing envFrom", from: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: ref("no")}}}, err: `configmap "no" not found`},
		{name: "unreadable", env: []v1.EnvVar{{Name: "X", ValueFrom: cmKey("broken", "k", &yes)}}, err: "forbidden"},
		{name: "bad field", env: []v1.EnvVar{{Name: "X", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "spec.x"}}}}, err: "unsupported fieldPath"},
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env, err := buildEnv(context.Background(), pod, &v1.Container{EnvFrom: tt.from, Env: tt.env}, map[string]string{"WEB_SERVICE_HOST": "10.43.0.9"}, src, nil)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			got := env.list([]string{"PATH=/bin", "A=image"})
			slices.Sort(got)
			want := append(slices.Clone(tt.want), "HOSTNAME=p", "WEB_SERVICE_HOST=10.43.0.9", "PATH=/bin")
			if _, own := env.values["A"]; !own {
				want = append(want, "A=image")
			}
			slices.Sort(want)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%q, %v; want %q", got, err, want)
			}
		})
	}
}

func TestServiceEnv(t *testing.T) {
	no := false
	svc := func(ns, name, ip string, ports ...v1.ServicePort) *v1.Service {
		return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	services := []*v1.Service{
		svc("default", "kubernetes", "10.43.0.1", v1.ServicePort{Name: "https", Port: 443}),
		svc("shop", "my-db", "10.43.0.2", v1.ServicePort{Port: 5432}, v1.ServicePort{Name: "admin-ui", Port: 80, Protocol: v1.ProtocolUDP}),
		svc("shop", "headless", v1.ClusterIPNone, v1.ServicePort{Port: 1}),
		svc("other", "web", "10.43.0.3", v1.ServicePort{Port: 80}),
	}
	got := serviceEnv(services, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}})
	want := map[string]string{
		"KUBERNETES_SERVICE_HOST": "10.43.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443",
		"KUBERNETES_PORT": "tcp://10.43.0.1:443", "MY_DB_SERVICE_HOST": "10.43.0.2", "MY_DB_SERVICE_PORT": "5432",
		"MY_DB_SERVICE_PORT_ADMIN_UI": "80", "MY_DB_PORT_80_UDP": "udp://10.43.0.2:80", "MY_DB_PORT_5432_TCP_ADDR": "10.43.0.2",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s=%q, want %q", k, got[k], v)
		}
	}
	for k := range got {
		if strings.HasPrefix(k, "WEB_") || strings.HasPrefix(k, "HEADLESS_") {
			t.Errorf("%s must not be set", k)
		}
	}
	got = serviceEnv(services, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: v1.PodSpec{EnableServiceLinks: &no}})
	if _, ok := got["MY_DB_SERVICE_HOST"]; ok || got["KUBERNETES_SERVICE_HOST"] == "" {
		t.Errorf("without service links: %v", got)
	}
}

func TestCommandLine(t *testing.T) {
	env := newEnviron()
	env.set("A", "1")
	img := imageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}}
	tests := []struct {
		command, args []string
		image         imageConfig
		want          string
	}{
		{nil, nil, img, "/e c"}, {[]string{"x"}, nil, img, "x"}, {nil, []string{"y"}, img, "/e y"},
		{[]string{"x"}, []string{"$(A)", "$$(A)"}, img, "x 1 $(A)"}, {nil, nil, imageConfig{Cmd: []string{"only"}}, "only"}, {nil, nil, imageConfig{}, ""},
	}
	for _, tt := range tests {
		got, err := commandLine(&v1.Container{Command: tt.command, Args: tt.args}, env, tt.image)
		if strings.Join(got, " ") != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%q %q: %q, %v; want %q", tt.command, tt.args, got, err, tt.want)
		}
	}
}
