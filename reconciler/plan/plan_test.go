package plan

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/render"
)

var shop = Owner{"default", "shop"}

func object(kind, name string, change ...func(*unstructured.Unstructured)) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name, "namespace": "default"},
	}}
	for _, f := range change {
		f(u)
	}
	return u
}

func ownedBy(o Owner) func(*unstructured.Unstructured) {
	return func(u *unstructured.Unstructured) {
		u.SetLabels(map[string]string{v1alpha1.LabelApplication: o.Name})
		a := u.GetAnnotations()
		if a == nil {
			a = map[string]string{}
		}
		a[v1alpha1.AnnotationApplicationNamespace] = o.Namespace
		u.SetAnnotations(a)
	}
}

func data(k, v string) func(*unstructured.Unstructured) {
	return func(u *unstructured.Unstructured) { _ = unstructured.SetNestedField(u.Object, v, "data", k) }
}

func wanted(u *unstructured.Unstructured) render.Object {
	return render.Object{Unstructured: u, File: "app.yaml", Line: 3}
}

func verbs(p Plan) string {
	var out []string
	for _, a := range p.Actions {
		out = append(out, string(a.Verb)+" "+a.ID.Kind+"/"+a.ID.Name)
	}
	return strings.Join(out, ", ")
}

func TestMake(t *testing.T) {
	kept := object("ConfigMap", "kept", ownedBy(shop))
	kept.SetAnnotations(map[string]string{v1alpha1.AnnotationPrune: "disabled", v1alpha1.AnnotationApplicationNamespace: "default"})
	copied := object("Endpoints", "web", ownedBy(shop))
	yes := true
	copied.SetOwnerReferences([]metav1.OwnerReference{{UID: "svc", Controller: &yes}})
	live := object("ConfigMap", "same", ownedBy(shop), data("a", "1"))
	p, conflicts := Make(shop, []Candidate{
		{Desired: wanted(object("Pod", "new"))},
		{Desired: wanted(object("ConfigMap", "same")), Live: live},
		{Desired: wanted(object("ConfigMap", "drifted")), Live: object("ConfigMap", "drifted", data("a", "2")), Applied: object("ConfigMap", "drifted", data("a", "1"))},
		{Desired: wanted(object("ConfigMap", "equal")), Live: live, Applied: live.DeepCopy()},
		{Desired: wanted(object("Job", "stuck")), Live: object("Job", "stuck"), Replace: true},
		{Desired: wanted(object("Namespace", "ns"))},
	}, []*unstructured.Unstructured{
		live, kept, copied, object("Service", "gone", ownedBy(shop)), object("ConfigMap", "gone", ownedBy(shop)),
		object("ConfigMap", "other", ownedBy(Owner{"default", "other"})), object("ConfigMap", "nobody"),
	}, true)
	const want = "create Namespace/ns, unchanged ConfigMap/same, configure ConfigMap/drifted, unchanged ConfigMap/equal, create Pod/new, replace Job/stuck, " +
		"prune Service/gone, prune ConfigMap/gone"
	if got := verbs(p); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(conflicts) > 0 {
		t.Error(conflicts)
	}
	if got := p.Summary(); got != "2 to create, 1 to configure, 1 to replace, 2 to prune, 2 unchanged" {
		t.Error(got)
	}
}

func TestConflict(t *testing.T) {
	other := Owner{"default", "other"}
	_, errs := Make(shop, []Candidate{{Desired: wanted(object("ConfigMap", "c")), Live: object("ConfigMap", "c", ownedBy(other))}}, nil, true)
	var conflict *ConflictError
	if len(errs) != 1 || !errors.As(errs[0], &conflict) || !strings.HasPrefix(errs[0].Error(), "app.yaml:3: default/configmap/c belongs to application default/other") {
		t.Errorf("%v", errs)
	}
}

// TestSecretsAreMasked: a plan shows that a secret's value changes, not what it is.
func TestSecretsAreMasked(t *testing.T) {
	a := Action{Verb: Configure, ID: render.ID{Kind: "Secret", Name: "s"},
		Live: object("Secret", "s", data("password", "aHVudGVyMQ==")), Applied: object("Secret", "s", data("password", "aHVudGVyMg=="))}
	var b bytes.Buffer
	if err := (Plan{Actions: []Action{a}}).Write(&b, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "aHVudGVy") || strings.Count(b.String(), "***") != 2 {
		t.Errorf("printed:\n%s", b.String())
	}
}

func TestUnified(t *testing.T) {
	before := "a\nb\nc\nd\ne\nf\ng\nh\ni\n"
	after := "a\nb\nc\nd\nE\nf\ng\nh\ni\nj\n"
	const want = "--- a/x\n+++ b/x\n@@ -2,8 +2,9 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n i\n+j\n"
	if got := Unified("x", before, after); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := Unified("x", "", "a\n"); got != "--- a/x\n+++ b/x\n@@ -0,0 +1,1 @@\n+a\n" {
		t.Errorf("new file:\n%s", got)
	}
}
