package history

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

var (
	revisionsResource = v1alpha1.SchemeGroupVersion.WithResource("revisions")
	secretsResource   = corev1.SchemeGroupVersion.WithResource("secrets")
)

// Store reads and writes Revisions through the Kubernetes API. It holds nothing
// itself and is safe for concurrent use.
type Store struct{ client dynamic.Interface }

// NewStore returns a store that works through client.
func NewStore(client dynamic.Interface) *Store { return &Store{client} }

// List returns the revisions of an application, the newest first.
func (s *Store) List(ctx context.Context, namespace, application string) ([]*v1alpha1.Revision, error) {
	list, err := s.client.Resource(revisionsResource).Namespace(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(labels.Set{v1alpha1.LabelApplication: application}).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("list revisions of %s/%s: %w", namespace, application, err)
	}
	out := make([]*v1alpha1.Revision, 0, len(list.Items))
	for i := range list.Items {
		r := &v1alpha1.Revision{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, r); err != nil {
			return nil, fmt.Errorf("revision %s: %w", list.Items[i].GetName(), err)
		}
		out = append(out, r)
	}
	Sort(out)
	return out, nil
}

// Record makes the Revision of a commit with its objects, or gives the existing
// one the next number and the new content. The caller sets what spec says of the
// commit and its images; the rest is filled in. The objects are stored before the
// Revision that names them, so that a Revision is never without its content.
func (s *Store) Record(ctx context.Context, app *v1alpha1.Application, spec v1alpha1.RevisionSpec, objects []*unstructured.Unstructured) (*v1alpha1.Revision, error) {
	all, err := s.List(ctx, app.Namespace, app.Name)
	if err != nil {
		return nil, err
	}
	chunks, digest, err := pack(objects)
	if err != nil {
		return nil, err
	}
	name := Name(app.Name, spec.Commit)
	spec.Application, spec.Number, spec.ContentDigest = app.Name, NextNumber(all), digest
	for _, o := range objects {
		spec.Objects = append(spec.Objects, v1alpha1.ObjectReference{
			APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(),
		})
	}
	for i := range chunks {
		// Named by content: a changed rendering of the commit never overwrites what
		// an existing Revision refers to.
		spec.Content = append(spec.Content, fmt.Sprintf("%s-%s-%d", name, digest[len("sha256:"):][:8], i))
	}
	for i, chunk := range chunks {
		if err := s.putChunk(ctx, app, spec.Content[i], chunk); err != nil {
			return nil, err
		}
	}
	for _, r := range all {
		if r.Spec.Commit != spec.Commit {
			continue
		}
		if r.Spec.Number == spec.Number-1 {
			spec.Number = r.Spec.Number // it is the newest already
		}
		r.Spec = spec
		return s.write(ctx, r, "update")
	}
	return s.write(ctx, &v1alpha1.Revision{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: app.Namespace,
			Labels:          map[string]string{v1alpha1.LabelApplication: app.Name},
			OwnerReferences: []metav1.OwnerReference{owner(app)},
		},
		Spec: spec,
	}, "create")
}

func owner(app *v1alpha1.Application) metav1.OwnerReference {
	return *metav1.NewControllerRef(app, v1alpha1.SchemeGroupVersion.WithKind("Application"))
}

func (s *Store) putChunk(ctx context.Context, app *v1alpha1.Application, name string, chunk []byte) error {
	yes := true
	secret := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: app.Namespace, OwnerReferences: []metav1.OwnerReference{owner(app)},
		},
		Type: v1alpha1.SecretTypeRevision, Immutable: &yes, Data: map[string][]byte{"objects": chunk},
	}
	u, err := toUnstructured(secret)
	if err != nil {
		return err
	}
	_, err = s.client.Resource(secretsResource).Namespace(app.Namespace).Create(ctx, u, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("store the objects of revision %s: %w", name, err)
	}
	return nil
}

func (s *Store) write(ctx context.Context, r *v1alpha1.Revision, how string) (*v1alpha1.Revision, error) {
	r.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "Revision"}
	u, err := toUnstructured(r)
	if err != nil {
		return nil, err
	}
	api := s.client.Resource(revisionsResource).Namespace(r.Namespace)
	if how == "create" {
		u, err = api.Create(ctx, u, metav1.CreateOptions{})
	} else {
		u, err = api.Update(ctx, u, metav1.UpdateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("%s revision %s/%s: %w", how, r.Namespace, r.Name, err)
	}
	out := &v1alpha1.Revision{}
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out)
}

func toUnstructured(obj any) (*unstructured.Unstructured, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: m}, nil
}

// Objects reads the rendered objects of a revision back.
func (s *Store) Objects(ctx context.Context, r *v1alpha1.Revision) ([]*unstructured.Unstructured, error) {
	var chunks [][]byte
	for _, name := range r.Spec.Content {
		u, err := s.client.Resource(secretsResource).Namespace(r.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read the objects of revision %s/%s: %w", r.Namespace, r.Name, err)
		}
		var secret corev1.Secret
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &secret); err != nil {
			return nil, err
		}
		chunks = append(chunks, secret.Data["objects"])
	}
	objects, err := unpack(chunks, r.Spec.ContentDigest)
	if err != nil {
		return nil, fmt.Errorf("revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return objects, nil
}

// Started notes that a deploy of the revision begins.
func (s *Store) Started(ctx context.Context, r *v1alpha1.Revision, trigger string, at time.Time) error {
	t := metav1.NewTime(at)
	return s.setStatus(ctx, r, v1alpha1.RevisionStatus{
		Outcome: v1alpha1.OutcomeDeploying, Succeeded: r.Status.Succeeded, Trigger: trigger, DeployedAt: &t,
	})
}

// Ended notes the outcome of the deploy that began last and how long it took.
func (s *Store) Ended(ctx context.Context, r *v1alpha1.Revision, outcome v1alpha1.Outcome, message string, took time.Duration) error {
	st := r.Status
	st.Outcome, st.Message = outcome, message
	st.Succeeded = st.Succeeded || outcome == v1alpha1.OutcomeSucceeded
	st.Duration = &metav1.Duration{Duration: took.Round(time.Millisecond)}
	return s.setStatus(ctx, r, st)
}

func (s *Store) setStatus(ctx context.Context, r *v1alpha1.Revision, st v1alpha1.RevisionStatus) error {
	status, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&st)
	if err != nil {
		return err
	}
	for _, field := range []string{"message", "duration"} { // a merge patch keeps what it does not name
		if _, ok := status[field]; !ok {
			status[field] = nil
		}
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": r.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = s.client.Resource(revisionsResource).Namespace(r.Namespace).Patch(ctx, r.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("status of revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	r.Status = st
	return nil
}

// Expire deletes the revisions beyond limit with their content.
func (s *Store) Expire(ctx context.Context, namespace, application string, limit int, keep ...string) error {
	all, err := s.List(ctx, namespace, application)
	if err != nil {
		return err
	}
	for _, r := range Expired(all, limit, keep...) {
		err := s.client.Resource(revisionsResource).Namespace(namespace).Delete(ctx, r.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete revision %s/%s: %w", namespace, r.Name, err)
		}
		for _, name := range r.Spec.Content {
			err := s.client.Resource(secretsResource).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete the objects of revision %s/%s: %w", namespace, r.Name, err)
			}
		}
	}
	return nil
}
