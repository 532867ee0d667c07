package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPayloadValidate(t *testing.T) {
	tests := []struct {
		path string
		ok   bool
	}{
		{"a", true}, {"a/b/c", true}, {"a..b", true}, {".hidden", true}, {"a/..b", true},
		{"", false}, {"/a", false}, {"..", false}, {"../a", false}, {"a/../b", false},
		{"..data", false}, {"a//b", false}, {"./a", false}, {"a/", false}, {"a\x00b", false},
		{strings.Repeat("x", 5000), false},
	}
	for _, tt := range tests {
		if err := (Payload{tt.path: {}}).Validate(); (err == nil) != tt.ok {
			t.Errorf("%q: %v, want ok %v", tt.path, err, tt.ok)
		}
	}
	if err := (Payload{"a": {}, "a/b": {}}).Validate(); err == nil {
		t.Error("a path that is both file and directory is accepted")
	}
}

func TestConfigMapAndSecretPayload(t *testing.T) {
	mode := int32(0o400)
	cm := &v1.ConfigMap{Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"c": {3}}}
	tests := []struct {
		name     string
		cm       *v1.ConfigMap
		items    []v1.KeyToPath
		optional bool
		want     string
		missing  bool
	}{
		{"all keys", cm, nil, false, "a b c", false},
		{"items", cm, []v1.KeyToPath{{Key: "b", Path: "x/y", Mode: &mode}}, false, "x/y", false},
		{"no items", cm, []v1.KeyToPath{}, false, "", false},
		{"missing key", cm, []v1.KeyToPath{{Key: "z", Path: "z"}}, false, "", true},
		{"optional missing key", cm, []v1.KeyToPath{{Key: "z", Path: "z"}}, true, "", false},
		{"missing object", nil, nil, false, "", true},
		{"optional missing object", nil, nil, true, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := configMapPayload(tt.cm, "cm", tt.items, 0o644, tt.optional)
			var m *MissingError
			if errors.As(err, &m) != tt.missing {
				t.Fatalf("error %v", err)
			}
			for _, name := range strings.Fields(tt.want) {
				if _, ok := p[name]; !ok {
					t.Errorf("lacks %s", name)
				}
			}
			if len(p) != len(strings.Fields(tt.want)) {
				t.Errorf("payload %v", p)
			}
			if f, ok := p["x/y"]; ok && f.Mode != 0o400 {
				t.Errorf("mode %o", f.Mode)
			}
		})
	}
}

func downwardPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web", Namespace: "shop", UID: "u1",
			Labels: map[string]string{"b": "2", "a": "1\n\"x"}, Annotations: map[string]string{"k.io/n": "v"},
		},
		Spec: v1.PodSpec{
			NodeName: "n1", ServiceAccountName: "sa",
			Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{
				Limits:   v1.ResourceList{v1.ResourceCPU: resource.MustParse("1500m")},
				Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("100Mi")},
			}}},
		},
		Status: v1.PodStatus{HostIP: "10.0.0.1", PodIP: "10.1.0.1", PodIPs: []v1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}},
	}
}

func TestFieldValue(t *testing.T) {
	tests := []struct {
		path, want string
		ok         bool
	}{
		{"metadata.name", "web", true}, {"metadata.namespace", "shop", true}, {"metadata.uid", "u1", true},
		{"metadata.labels['b']", "2", true}, {"metadata.labels['none']", "", true}, {"metadata.annotations['k.io/n']", "v", true},
		{"metadata.labels", "a=\"1\\n\\\"x\"\nb=\"2\"", true}, {"metadata.annotations", "k.io/n=\"v\"", true},
		{"spec.nodeName", "n1", true}, {"spec.serviceAccountName", "sa", true},
		{"status.hostIP", "10.0.0.1", true}, {"status.podIP", "10.1.0.1", true}, {"status.podIPs", "10.1.0.1,fd00::1", true},
		{"spec.containers", "", false}, {"metadata.name['x']", "", false}, {"['x']", "", false}, {"", "", false},
	}
	for _, tt := range tests {
		got, err := FieldValue(downwardPod(), tt.path)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %q, %v; want %q", tt.path, got, err, tt.want)
		}
	}
}

func TestResourceValue(t *testing.T) {
	alloc := v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("1Gi")}
	tests := []struct {
		resource, divisor, want string
		ok                      bool
	}{
		{"limits.cpu", "", "2", true}, {"limits.cpu", "1m", "1500", true}, {"limits.memory", "1Mi", "1024", true},
		{"requests.memory", "", "104857600", true}, {"requests.memory", "1G", "1", true}, {"requests.cpu", "", "0", true},
		{"limits.gpu", "", "", false}, {"cpu", "", "", false}, {"usage.cpu", "", "", false},
	}
	for _, tt := range tests {
		ref := &v1.ResourceFieldSelector{Resource: tt.resource}
		if tt.divisor != "" {
			ref.Divisor = resource.MustParse(tt.divisor)
		}
		got, err := ResourceValue(downwardPod(), "c", ref, alloc)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s / %s: %q, %v; want %q", tt.resource, tt.divisor, got, err, tt.want)
		}
	}
	if _, err := ResourceValue(downwardPod(), "nope", &v1.ResourceFieldSelector{Resource: "limits.cpu"}, alloc); err == nil {
		t.Error("an unknown container is accepted")
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	check := func(name, want string, mode fs.FileMode) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(data) != want {
			t.Errorf("%s: %q, %v; want %q", name, data, err, want)
			return
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %o, want %o", name, info.Mode().Perm(), mode)
		}
	}
	write := func(p Payload, wantChanged bool) string {
		t.Helper()
		changed, err := Write(dir, p, nil)
		if err != nil || changed != wantChanged {
			t.Fatalf("changed %v, %v; want %v", changed, err, wantChanged)
		}
		link, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	first := write(Payload{"a": {[]byte("1"), 0o666}, "d/e": {[]byte("2"), 0o400}}, true)
	check("a", "1", 0o666)
	check("d/e", "2", 0o400)
	if link, err := os.Readlink(filepath.Join(dir, "a")); err != nil || link != "..data/a" {
		t.Errorf("a is %q, %v", link, err)
	}
	if again := write(Payload{"a": {[]byte("1"), 0o666}, "d/e": {[]byte("2"), 0o400}}, false); again != first {
		t.Error("writing the same made a new directory")
	}
	second := write(Payload{"a": {[]byte("3"), 0o666}, "f": {nil, 0o644}}, true)
	check("a", "3", 0o666)
	check("f", "", 0o644)
	if _, err := os.Lstat(filepath.Join(dir, "d")); !os.IsNotExist(err) {
		t.Errorf("d is still there: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 || second == first {
		t.Errorf("left %v, %v", entries, err)
	}
	write(Payload{"a": {[]byte("3"), 0o600}, "f": {nil, 0o644}}, true)
	check("a", "3", 0o600)
	write(Payload{}, true)
	if _, err := Write(dir, Payload{"../x": {}}, nil); err == nil {
		t.Error("a path out of the volume is written")
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path string
		kind v1.HostPathType
		ok   bool
	}{
		{dir, v1.HostPathDirectory, true}, {file, v1.HostPathDirectory, false},
		{file, v1.HostPathFile, true}, {dir, v1.HostPathFile, false},
		{filepath.Join(dir, "new/dir"), v1.HostPathDirectoryOrCreate, true}, {filepath.Join(dir, "newfile"), v1.HostPathFileOrCreate, true},
		{filepath.Join(dir, "none"), v1.HostPathDirectory, false}, {filepath.Join(dir, "none"), v1.HostPathFile, false},
		{"/dev/null", v1.HostPathCharDev, true}, {"/dev/null", v1.HostPathBlockDev, false}, {file, v1.HostPathSocket, false},
		{file, v1.HostPathUnset, true}, {filepath.Join(dir, "made"), v1.HostPathUnset, true}, {dir, "Strange", false},
	}
	for _, tt := range tests {
		if err := checkHostPath(tt.path, tt.kind); (err == nil) != tt.ok {
			t.Errorf("%s as %q: %v, want ok %v", tt.path, tt.kind, err, tt.ok)
		}
	}
}

type fakeSources map[string]any

func (f fakeSources) ConfigMap(_ context.Context, _, name string) (*v1.ConfigMap, error) {
	cm, _ := f["cm/"+name].(*v1.ConfigMap)
	return cm, nil
}

func (f fakeSources) Token(_ context.Context, pod *v1.Pod, src *v1.ServiceAccountTokenProjection) (string, error) {
	return "token of " + pod.Name + " for " + src.Audience, nil
}

func (f fakeSources) Secret(_ context.Context, _, name string) (*v1.Secret, error) {
	s, _ := f["s/"+name].(*v1.Secret)
	return s, nil
}

func (f fakeSources) PersistentVolume(_ context.Context, _ *v1.Pod, v *v1.Volume) (*v1.PersistentVolume, error) {
	pv, _ := f["pv/"+v.Name].(*v1.PersistentVolume)
	if pv == nil {
		return nil, errors.New("not bound")
	}
	return pv, nil
}

func TestManager(t *testing.T) {
	dir := t.TempDir()
	src := fakeSources{
		"cm/c": &v1.ConfigMap{Data: map[string]string{"k": "v"}},
		"s/s":  &v1.Secret{Data: map[string][]byte{"p": []byte("hush")}},
	}
	m := NewManager(dir, filepath.Join(dir, "local"), src, func() v1.ResourceList { return nil })
	gid := int64(1234)
	limit := resource.MustParse("1Mi")
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "p"}}
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &gid}
	pod.Spec.Volumes = []v1.Volume{
		{Name: "c", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "c"}}}},
		{Name: "s", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}},
		{Name: "e", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &limit}}},
	}
	t.Cleanup(func() {
		if err := UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	ctx := context.Background()
	for range 2 { // it may be repeated
		if err := m.SetUp(ctx, pod); err != nil {
			t.Fatal(err)
		}
	}
	at := func(volume, name string) string { return filepath.Join(dir, "u", "volumes", volume, name) }
	for _, tmpfs := range []string{"s", "e"} {
		if ok, err := mountinfo.Mounted(at(tmpfs, "")); err != nil || !ok {
			t.Errorf("%s is not in memory: %v", tmpfs, err)
		}
	}
	if err := os.WriteFile(at("e", "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("sizeLimit does not bound an emptyDir in memory")
	}
	src["cm/c"] = &v1.ConfigMap{Data: map[string]string{"k": "new"}}
	if err := m.Refresh(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(at("c", "k")); err != nil || string(data) != "new" {
		t.Errorf("after refresh: %q, %v", data, err)
	}

	testSubPath(t, m, at("e", ""))

	if err := m.TearDown("u"); err != nil {
		t.Fatal(err)
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(mounts) != 0 {
		t.Errorf("mounts left: %v, %v", mounts, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "u", "volumes")); !os.IsNotExist(err) {
		t.Errorf("volumes left: %v", err)
	}
	pod.Spec.Volumes[0].ConfigMap.Name = "nope"
	if err := m.SetUp(ctx, pod); err == nil || !strings.Contains(err.Error(), `volume "c": configmap "nope" not found`) {
		t.Errorf("missing ConfigMap: %v", err)
	}
}

func testSubPath(t *testing.T, m *Manager, root string) {
	t.Helper()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "escape")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"../x", "/etc", "a/../../x"} {
		if _, err := m.SubPath("u", "c", 0, root, bad); err == nil {
			t.Errorf("subPath %q is accepted", bad)
		}
	}
	// A link is resolved inside of the volume: it may lead nowhere, never out.
	if p, err := m.SubPath("u", "c", 1, root, "escape"); err == nil {
		if _, err := os.Stat(filepath.Join(p, "secret")); err == nil {
			t.Error("a link leads out of the volume")
		}
	}
	p, err := m.SubPath("u", "c", 2, root, "new/dir")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "new/dir/f")); err != nil {
		t.Errorf("the subPath is not part of the volume: %v", err)
	}
}

func TestServiceAccountToken(t *testing.T) {
	dir := t.TempDir()
	m := NewManager(dir, t.TempDir(), fakeSources{}, func() v1.ResourceList { return nil })
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u", Name: "p"}}
	pod.Spec.Volumes = []v1.Volume{{Name: "t", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{
		Sources: []v1.VolumeProjection{{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}}},
	}}}}
	if err := m.SetUp(context.Background(), pod); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.TearDown("u"); err != nil {
			t.Error(err)
		}
	}()
	volume := filepath.Join(dir, "u", "volumes", "t")
	if b, err := os.ReadFile(filepath.Join(volume, "token")); err != nil || string(b) != "token of p for vault" {
		t.Errorf("%q, %v", b, err)
	}
	if mounted, err := mountinfo.Mounted(volume); err != nil || !mounted {
		t.Errorf("a token is on a disk: %v", err)
	}
}
