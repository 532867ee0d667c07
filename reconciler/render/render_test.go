package render

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func link(target string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\n"

const web = `# the web server
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:v1
`

// bomb is a document whose aliases expand to 10^9 strings.
func bomb() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		ref := strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ",")
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, ref)
	}
	return b.String()
}

func TestRender(t *testing.T) {
	for _, c := range []struct {
		name string
		tree fstest.MapFS
		path string
		want string // identities in order, or an error after "!"
	}{
		{name: "plain tree in the order of its files",
			tree: fstest.MapFS{"b.yaml": file(fmt.Sprintf(configMap, "b")), "a/a.yml": file(fmt.Sprintf(configMap, "a")), "README.md": file("no manifest")},
			want: "ns/configmap/a ns/configmap/b"},
		{name: "several documents, empty ones and lists",
			tree: fstest.MapFS{"x.yaml": file("---\n# nothing\n---\n" + fmt.Sprintf(configMap, "a") + "---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n")},
			want: "ns/configmap/a namespace/shop"},
		{name: "path", path: "deploy", tree: fstest.MapFS{"deploy/w.yaml": file(web), "other.yaml": file("{")}, want: "ns/deployment.apps/web"},
		{name: "missing path", path: "nope", tree: fstest.MapFS{"a.yaml": file(web)}, want: "!nope: no such folder"},
		{name: "path out of the tree", path: "../x", tree: fstest.MapFS{}, want: "!../x: the path leaves"},
		{name: "does not parse", tree: fstest.MapFS{"d/x.yaml": file(fmt.Sprintf(configMap, "a") + "---\na: b\n\tc: d\n")}, want: "!d/x.yaml:7: found a tab character"},
		{name: "unknown field with its line", tree: fstest.MapFS{"w.yaml": file(strings.Replace(web, "image:", "imaeg:", 1))},
			want: `!w.yaml:12: ns/deployment.apps/web: unknown field "spec.template.spec.containers[0].imaeg"`},
		{name: "wrong type", tree: fstest.MapFS{"w.yaml": file(web + "  replicas: many\n")}, want: "!w.yaml:2: ns/deployment.apps/web"},
		{name: "duplicate key", tree: fstest.MapFS{"w.yaml": file(web + "spec: {}\n")}, want: "!w.yaml:"},
		{name: "no kind", tree: fstest.MapFS{"values.yaml": file("a: b\n")}, want: "!values.yaml:1: the document has no kind"},
		{name: "no name", tree: fstest.MapFS{"x.yaml": file("apiVersion: v1\nkind: ConfigMap\n")}, want: "!x.yaml:1: ConfigMap has no metadata.name"},
		{name: "one identity twice", tree: fstest.MapFS{"a.yaml": file(web), "b.yaml": file(web)}, want: "!b.yaml:2: ns/deployment.apps/web is defined twice: also in a.yaml:2"},
		{name: "link within the tree", tree: fstest.MapFS{"deploy/a.yaml": link("../base/a.yaml"), "base/a.yaml": file(web)}, path: "deploy", want: "ns/deployment.apps/web"},
		{name: "link out of the tree", tree: fstest.MapFS{"a.yaml": link("../../etc/passwd")}, want: "!a.yaml: the symbolic link points out of the repository"},
		{name: "absolute link", tree: fstest.MapFS{"data": link("/etc")}, want: "!data: the symbolic link points out of the repository"},
		{name: "link loop", tree: fstest.MapFS{"a.yaml": link("b.yaml"), "b.yaml": link("a.yaml")}, want: "!a.yaml: too many symbolic links"},
		{name: "alias bomb", tree: fstest.MapFS{"x.yaml": file(bomb())}, want: "!x.yaml:1: document contains excessive aliasing"},
		{name: "kustomization",
			tree: fstest.MapFS{
				"base/kustomization.yaml":    file("resources: [web.yaml]\n"),
				"base/web.yaml":              file(web),
				"overlay/kustomization.yaml": file("resources: [../base]\nnamePrefix: eu-\nconfigMapGenerator:\n- name: c\n  literals: [URL=https://example.com]\n  options: {disableNameSuffixHash: true}\nimages: [{name: web, newTag: v9}]\n"),
			}, path: "overlay", want: "ns/deployment.apps/eu-web ns/configmap/eu-c"},
		{name: "remote base", tree: fstest.MapFS{"kustomization.yaml": file("resources: [https://example.com/base.yaml]\n")}, want: `!kustomization.yaml: "https://example.com/base.yaml" is not in the repository`},
		{name: "remote git base behind a local one", tree: fstest.MapFS{"kustomization.yaml": file("resources: [sub]\n"), "sub/kustomization.yaml": file("bases: ['example.com/acme/base?ref=v1']\n")},
			want: `!sub/kustomization.yaml: "example.com/acme/base?ref=v1" is not in the repository`},
		{name: "remote file of a generator", tree: fstest.MapFS{"kustomization.yaml": file("configMapGenerator:\n- name: c\n  files: [x=https://example.com/x]\n")},
			want: `!kustomization.yaml: "https://example.com/x" is not in the repository`},
		{name: "kustomization leaves the tree", tree: fstest.MapFS{"kustomization.yaml": file("resources: [../../x]\n")}, want: `!kustomization.yaml: "../../x" is not in the repository`},
		{name: "helm in a kustomization", tree: fstest.MapFS{"kustomization.yaml": file("helmCharts: [{name: x}]\n")}, want: "!kustomization.yaml: helmCharts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path
			if path == "" {
				path = "."
			}
			objects, err := Render(t.Context(), c.tree, Options{Path: path, Namespace: "ns"})
			if msg, failing := strings.CutPrefix(c.want, "!"); failing {
				if err == nil || !strings.HasPrefix(err.Error(), msg) {
					t.Fatalf("got error %v\nwant %s", err, msg)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, o := range objects {
				ids = append(ids, IDOf(o.Unstructured).String())
			}
			if got := strings.Join(ids, " "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// bigFile is a file of 200 MB that must never be read.
type bigFS struct{ fstest.MapFS }

func (b bigFS) Lstat(name string) (fs.FileInfo, error) {
	info, err := fs.Lstat(b.MapFS, name)
	if err == nil && name == "big.yaml" {
		info = bigInfo{info}
	}
	return info, err
}

func (b bigFS) ReadLink(name string) (string, error) { return fs.ReadLink(b.MapFS, name) }

func (b bigFS) Open(name string) (fs.File, error) {
	if name == "big.yaml" {
		panic("opened a file that is too large")
	}
	return b.MapFS.Open(name)
}

type bigInfo struct{ fs.FileInfo }

func (bigInfo) Size() int64 { return 200 << 20 }

func TestHugeFileIsNotRead(t *testing.T) {
	_, err := Render(t.Context(), bigFS{fstest.MapFS{"big.yaml": file("x")}}, Options{Path: "."})
	if err == nil || !strings.Contains(err.Error(), "big.yaml: the file has 200 MiB; a manifest may have 4") {
		t.Fatalf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{web, configMap, bomb(), "---\n---", "{", "- a", "a: &a [*a]", "kind: List\napiVersion: v1\nitems: [1]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := Parse("f.yaml", b)
		for _, o := range objects {
			if o.GetKind() == "" || o.GetAPIVersion() == "" {
				t.Errorf("an object without kind or apiVersion: %v (%v)", o.Object, err)
			}
		}
	})
}
