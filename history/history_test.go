package history

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

func revision(n int64, sha string, succeeded bool) *v1alpha1.Revision {
	return &v1alpha1.Revision{
		ObjectMeta: metav1.ObjectMeta{Name: Name("shop", sha)},
		Spec:       v1alpha1.RevisionSpec{Number: n, Commit: sha},
		Status:     v1alpha1.RevisionStatus{Succeeded: succeeded},
	}
}

func sha(prefix string) string { return prefix + strings.Repeat("0", 40-len(prefix)) }

func TestChoose(t *testing.T) {
	all := []*v1alpha1.Revision{
		revision(1, sha("aaaa1"), true), revision(2, sha("bbbb1"), true), revision(3, sha("bbbb2"), false),
		revision(4, sha("cccc1"), true), revision(1234, sha("12345"), true),
	}
	for _, c := range []struct {
		wanted, deployed string
		want             int64
		err              error
	}{
		{"", "12345", 4, nil},
		{"", "cccc1", 2, nil}, // 3 never succeeded
		{"", "bbbb1", 1, nil},
		{"", "aaaa1", 0, ErrNoRevision},
		{"aaaa", "cccc1", 1, nil},
		{"AAAA1", "cccc1", 1, nil},
		{sha("bbbb2"), "cccc1", 3, nil}, // by name also one that failed
		{"bbbb", "cccc1", 0, ErrAmbiguous},
		{"aaa", "cccc1", 0, ErrNoRevision},
		{"2", "cccc1", 2, nil},
		{"1234", "cccc1", 1234, nil}, // number and SHA of one revision
		{"HEAD~1", "cccc1", 3, nil},
		{"HEAD~", "cccc1", 3, nil},
		{"HEAD^^", "cccc1", 2, nil},
		{"HEAD", "cccc1", 4, nil},
		{"HEAD~4", "cccc1", 0, ErrNoRevision},
		{"HEAD~x", "cccc1", 0, ErrNoRevision},
		{"master", "cccc1", 0, ErrNoRevision},
	} {
		r, err := Choose(c.wanted, all, sha(c.deployed))
		switch {
		case c.err != nil && !errors.Is(err, c.err):
			t.Errorf("Choose(%q) from %s: %v, want %v", c.wanted, c.deployed, err, c.err)
		case c.err == nil && err != nil:
			t.Errorf("Choose(%q) from %s: %v", c.wanted, c.deployed, err)
		case c.err == nil && r.Spec.Number != c.want:
			t.Errorf("Choose(%q) from %s = %d, want %d", c.wanted, c.deployed, r.Spec.Number, c.want)
		}
	}
}

// TestUndoWalksBack: repeated rollbacks without a target visit every successful
// revision once, from new to old, whichever of them failed.
func TestUndoWalksBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*v1alpha1.Revision
		var want []string
		for i, ok := range rapid.SliceOfN(rapid.Bool(), 1, 20).Draw(t, "succeeded") {
			s := sha(fmt.Sprintf("%04x", i))
			all = append(all, revision(int64(i+1), s, ok))
			if ok {
				want = append([]string{s}, want...)
			}
		}
		deployed := all[len(all)-1].Spec.Commit
		if len(want) > 0 && want[0] == deployed {
			want = want[1:]
		}
		for _, next := range want {
			r, err := Choose("", all, deployed)
			if err != nil || r.Spec.Commit != next {
				t.Fatalf("from %s: got %v, %v; want %s", deployed, r, err, next)
			}
			deployed = next
		}
		if _, err := Choose("", all, deployed); !errors.Is(err, ErrNoRevision) {
			t.Fatalf("past the oldest: %v", err)
		}
	})
}

func TestFallback(t *testing.T) {
	all := []*v1alpha1.Revision{revision(1, sha("a"), true), revision(2, sha("b"), true), revision(3, sha("c"), false), revision(4, sha("d"), false)}
	for name, tc := range map[string]struct {
		ready string
		want  int64
	}{
		"what ran before":            {sha("b"), 2},
		"a rollback ran before":      {sha("a"), 1},
		"the failed one ran before":  {sha("d"), 2},
		"it never succeeded":         {sha("c"), 2},
		"it is not kept":             {sha("e"), 2},
		"nothing was noted about it": {"", 2},
	} {
		got, err := Fallback(all, sha("d"), tc.ready)
		if err != nil || got.Spec.Number != tc.want {
			t.Errorf("%s: %v %v, want revision %d", name, got, err, tc.want)
		}
	}
	if _, err := Fallback(all[2:], sha("d"), ""); !errors.Is(err, ErrNoRevision) {
		t.Errorf("with no successful revision: %v", err)
	}
}

func TestExpiredKeepsWhatIsNeeded(t *testing.T) {
	all := []*v1alpha1.Revision{revision(1, sha("a"), true), revision(2, sha("b"), true), revision(3, sha("c"), false), revision(4, sha("d"), false)}
	got := Expired(all, 1, sha("a"))
	if len(got) != 1 || got[0].Spec.Number != 3 {
		t.Fatalf("expired %v; want only 3: 1 is deployed, 2 the newest that succeeded, 4 within the limit", got)
	}
}

func TestPackRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var objects []*unstructured.Unstructured
		for i := range rapid.IntRange(0, 5).Draw(t, "n") {
			objects = append(objects, &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": fmt.Sprint("c", i)},
				"data": map[string]any{"k": rapid.String().Draw(t, "v")},
			}})
		}
		chunks, digest, err := pack(objects)
		if err != nil {
			t.Fatal(err)
		}
		back, err := unpack(chunks, digest)
		if err != nil || len(back) != len(objects) {
			t.Fatalf("%d objects came back of %d: %v", len(back), len(objects), err)
		}
		if len(chunks) > 0 && len(objects) > 0 {
			if _, err := unpack(chunks, "sha256:0"); err == nil {
				t.Fatal("content with a wrong digest was accepted")
			}
		}
	})
}
