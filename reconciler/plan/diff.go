package plan

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/sergi/go-diff/diffmatchpatch"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// bookkeeping are metadata fields that the server keeps; they are no change.
var bookkeeping = []string{"managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink"}

// bookkeepingAnnotations change with the commit and not with the object.
var bookkeepingAnnotations = []string{
	v1alpha1.AnnotationCommit, v1alpha1.AnnotationChangeCause, v1alpha1.AnnotationApplied, "deployment.kubernetes.io/revision",
	"kubectl.kubernetes.io/last-applied-configuration",
}

// Equal says whether two versions of an object mean the same: everything but
// status and bookkeeping agrees.
func Equal(a, b *unstructured.Unstructured) bool {
	return reflect.DeepEqual(withoutBookkeeping(a), withoutBookkeeping(b))
}

// withoutBookkeeping is a copy of an object without what changes by itself.
func withoutBookkeeping(u *unstructured.Unstructured) map[string]any {
	if u == nil {
		return nil
	}
	c := u.DeepCopy()
	unstructured.RemoveNestedField(c.Object, "status")
	for _, f := range bookkeeping {
		unstructured.RemoveNestedField(c.Object, "metadata", f)
	}
	for _, a := range bookkeepingAnnotations {
		unstructured.RemoveNestedField(c.Object, "metadata", "annotations", a)
	}
	if len(c.GetAnnotations()) == 0 {
		unstructured.RemoveNestedField(c.Object, "metadata", "annotations")
	}
	return c.Object
}

// Text is an object as YAML for people to compare, with the values of Secrets
// masked: a changed value shows as another mask.
func Text(u *unstructured.Unstructured) string {
	m := withoutBookkeeping(u)
	if m == nil {
		return ""
	}
	if u.GetKind() == "Secret" && u.GroupVersionKind().Group == "" {
		mask(m)
	}
	b, err := yaml.Marshal(m)
	if err != nil {
		return fmt.Sprintf("cannot be printed: %v\n", err)
	}
	return string(b)
}

// maskKey makes masks of this process differ from those of any other, so that a
// mask cannot be used to guess a short secret.
var maskKey = func() []byte {
	key := make([]byte, 16)
	_, _ = rand.Read(key) // never fails, as its documentation says
	return key
}()

func mask(secret map[string]any) {
	for _, field := range []string{"data", "stringData"} {
		values, ok := secret[field].(map[string]any)
		if !ok {
			continue
		}
		for k, v := range values {
			sum := sha256.Sum256(fmt.Appendf(maskKey[:len(maskKey):len(maskKey)], "%v", v))
			values[k] = "*** (" + hex.EncodeToString(sum[:4]) + ")"
		}
	}
}

// texts are an action's object as text before and after.
func (a Action) texts() (before, after string) {
	before = Text(a.Live)
	switch {
	case a.Verb == Prune:
	case a.Verb == Unchanged:
		after = before
	case a.Applied != nil:
		after = Text(a.Applied)
	default:
		after = Text(a.Desired.Unstructured)
	}
	return before, after
}

// Diff is the change of an action's object in the unified format, or "".
func (a Action) Diff() string {
	before, after := a.texts()
	if before == after {
		return ""
	}
	return Unified(a.ID.String(), before, after)
}

// Write prints the plan: a line for each object that changes, with its diff if
// wanted, and the summary.
func (p Plan) Write(w io.Writer, diffs bool) error {
	for _, a := range p.Actions {
		if a.Verb == Unchanged {
			continue
		}
		if _, err := fmt.Fprintf(w, "%-9s %s\n", a.Verb, a.ID); err != nil {
			return err
		}
		if diffs {
			if _, err := io.WriteString(w, a.Diff()); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "plan: %s\n", p.Summary())
	return err
}

// Unified is the difference of two texts with three lines of context.
func Unified(name, before, after string) string {
	d := diffmatchpatch.New()
	d.DiffTimeout = 0 // the same input gives the same output
	a, b, lines := d.DiffLinesToChars(before, after)
	diffs := d.DiffCharsToLines(d.DiffMain(a, b, false), lines)
	type line struct {
		op   byte
		text string
	}
	var all []line
	for _, part := range diffs {
		op := map[diffmatchpatch.Operation]byte{diffmatchpatch.DiffEqual: ' ', diffmatchpatch.DiffInsert: '+', diffmatchpatch.DiffDelete: '-'}[part.Type]
		for l := range strings.Lines(part.Text) {
			all = append(all, line{op, strings.TrimSuffix(l, "\n")})
		}
	}
	const context = 3
	near := make([]bool, len(all))
	for i, l := range all {
		if l.op != ' ' {
			for j := max(0, i-context); j <= min(len(all)-1, i+context); j++ {
				near[j] = true
			}
		}
	}
	var out strings.Builder
	fmt.Fprintf(&out, "--- a/%s\n+++ b/%s\n", name, name)
	from, to := 1, 1
	for i := 0; i < len(all); {
		if !near[i] {
			from++
			to++
			i++
			continue
		}
		end := i
		var dels, adds int
		for ; end < len(all) && near[end]; end++ {
			if all[end].op != '+' {
				dels++
			}
			if all[end].op != '-' {
				adds++
			}
		}
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", span(from, dels), span(to, adds))
		for ; i < end; i++ {
			out.WriteByte(all[i].op)
			out.WriteString(all[i].text)
			out.WriteByte('\n')
		}
		from += dels
		to += adds
	}
	return out.String()
}

func span(start, n int) string {
	if n == 0 {
		start--
	}
	return fmt.Sprintf("%d,%d", start, n)
}
