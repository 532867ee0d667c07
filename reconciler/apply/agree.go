package apply

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

const applyPatchType = types.ApplyPatchType

// askAtOnce bounds the dry runs under way at the same time.
const askAtOnce = 16

// Stamp returns the manifest as it is applied for an Application and a commit:
// with the labels and annotations that say so.
func Stamp(o *unstructured.Unstructured, owner plan.Owner, commit, cause string) *unstructured.Unstructured {
	u := o.DeepCopy()
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[v1alpha1.LabelApplication] = owner.Name
	u.SetLabels(labels)
	annotations := u.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[v1alpha1.AnnotationApplicationNamespace] = owner.Namespace
	annotations[v1alpha1.AnnotationCommit] = commit
	annotations[v1alpha1.AnnotationChangeCause] = cause
	annotations[v1alpha1.AnnotationApplied] = Digest(o)
	u.SetAnnotations(annotations)
	return u
}

// Compare finds out, for each wanted object, what the cluster has and what it
// would have. Only objects whose manifest changed or that drifted are asked of the
// server, by a dry run that also validates them. Objects that cannot be changed are
// to be replaced if replace says so. Faults of single objects are joined in the
// error, each with its file and line.
func (c *Cluster) Compare(ctx context.Context, owner plan.Owner, objects []render.Object,
	stamp func(*unstructured.Unstructured) *unstructured.Unstructured, replace func(*unstructured.Unstructured) bool,
) ([]plan.Candidate, error) {
	objects = yieldReplicas(objects)
	out := make([]plan.Candidate, len(objects))
	errs := make([]error, len(objects))
	newNamespaces := map[string]bool{}
	for _, o := range objects {
		if o.GetKind() == "Namespace" {
			newNamespaces[o.GetName()] = true
		}
	}
	slots := make(chan struct{}, askAtOnce)
	var wg sync.WaitGroup
	for i, o := range objects {
		out[i].Desired = o
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			live, err := c.Live(ctx, o.Unstructured)
			if err != nil {
				errs[i] = fault(o, err)
				return
			}
			out[i].Live = live
			if live != nil && Agrees(o.Unstructured, live) {
				return
			}
			applied, err := c.Apply(ctx, WithReplicas(stamp(o.Unstructured), &o, live), true)
			if live != nil && immutable(err) && replace(o.Unstructured) {
				out[i].Replace = true
				return
			}
			if err != nil {
				if live == nil && apierrors.IsNotFound(err) && newNamespaces[o.GetNamespace()] {
					return // its namespace comes with it
				}
				errs[i] = fault(o, err)
				return
			}
			out[i].Applied = applied
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// immutable says that an object is refused for nothing but that fields of it cannot
// be changed: as a new one it would be valid.
func immutable(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	causes := status.Status().Details.Causes
	for _, c := range causes {
		if !strings.HasSuffix(c.Message, "field is immutable") {
			return false
		}
	}
	return len(causes) > 0
}

func fault(o render.Object, err error) error {
	if o.GetKind() == "Job" && immutable(err) {
		err = fmt.Errorf("what a Job runs cannot be changed: give it another name, delete it first, or annotate it with %s: enabled; "+
			"what runs again and again is a CronJob: %w", v1alpha1.AnnotationReplace, err)
	}
	if o.File == "" {
		return fmt.Errorf("%s: %w", render.IDOf(o.Unstructured), err)
	}
	return &render.Error{File: o.File, Line: o.Line, Err: err}
}

// Agrees says, without asking the server, that an object was applied from this
// very manifest and still has every value of it. When it says no the server may
// still find them equal: it knows defaults and other spellings of a quantity.
func Agrees(desired, live *unstructured.Unstructured) bool {
	return live.GetAnnotations()[v1alpha1.AnnotationApplied] == Digest(desired) && within(desired.Object, live.Object)
}

// within says whether every value of a is in b.
func within(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok {
			return len(a) == 0
		}
		for k, v := range a {
			if w, ok := b[k]; !ok && !empty(v) || ok && !within(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return len(a) == 0 && !ok
		}
		for i := range a {
			if !within(a[i], b[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

// empty values of a manifest are dropped by the server.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}
