package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/reconciler"
)

var (
	applications = v1alpha1.SchemeGroupVersion.WithResource("applications")
	secrets      = corev1.SchemeGroupVersion.WithResource("secrets")
)

// gitHooks joins the Git server and the reconciler: a push is checked before it
// is let in, and its rollout is told to the pusher.
type gitHooks struct {
	recon *reconciler.Reconciler
	apps  dynamic.Interface
}

func (h *gitHooks) app(ctx context.Context, key string) (*v1alpha1.Application, error) {
	ns, name, _ := strings.Cut(key, "/")
	return getApplication(ctx, h.apps, ns, name)
}

// getApplication returns an Application; nil if there is none.
func getApplication(ctx context.Context, d dynamic.Interface, namespace, name string) (*v1alpha1.Application, error) {
	u, err := d.Resource(applications).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	app := &v1alpha1.Application{}
	return app, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, app)
}

// Exists implements gitsource.Hooks.
func (h *gitHooks) Exists(ctx context.Context, key string) (bool, error) {
	app, err := h.app(ctx, key)
	return app != nil, err
}

// deploys says whether an Application is deployed from the ref that is pushed.
func deploys(app *v1alpha1.Application, ref string) bool {
	return ref == app.Spec.Source.Ref || ref == "refs/heads/"+app.Spec.Source.Ref || ref == "refs/tags/"+app.Spec.Source.Ref
}

// Check implements gitsource.Hooks: it refuses what could not be deployed.
func (h *gitHooks) Check(ctx context.Context, p gitsource.Push, out io.Writer) error {
	app, err := h.app(ctx, p.Key)
	if err != nil {
		return err
	}
	switch {
	case app == nil:
		return fmt.Errorf("application %s does not exist", p.Key)
	case app.Spec.Source.RepoURL != "":
		return fmt.Errorf("application %s follows %s; push there, or remove spec.source.repoURL", p.Key, app.Spec.Source.RepoURL)
	case !deploys(app, p.Ref):
		return nil
	case p.New == "":
		return fmt.Errorf("%s is what application %s is deployed from; point spec.source.ref elsewhere before deleting it", p.Ref, p.Key)
	}
	_, err = h.recon.Preview(ctx, p.Key, p.New, p.Files)
	if err != nil {
		fmt.Fprintf(out, "%v\n", err)
		return errors.New("the manifests can't be deployed, see above")
	}
	return nil
}

// Pushed implements gitsource.Hooks: it deploys and tells how that goes.
func (h *gitHooks) Pushed(ctx context.Context, p gitsource.Push, out io.Writer) error {
	app, err := h.app(ctx, p.Key)
	if err != nil {
		return err
	}
	if app == nil {
		return nil
	}
	if !deploys(app, p.Ref) {
		h.recon.Trigger(p.Key, "push") // a tag may match a range
		return nil
	}
	limit := 5 * time.Minute
	if t := app.Spec.Sync.Timeout; t != nil {
		limit = t.Duration
	}
	ctx, cancel := context.WithTimeout(ctx, limit+time.Minute)
	defer cancel()
	lines, stop := h.recon.Listen(p.Key)
	defer stop()
	h.recon.Trigger(p.Key, "push")
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("still under way; `gitk8s status %s` tells how it goes on", app.Name)
		case l := <-lines:
			if l.Commit != p.New && l.Commit != "" {
				continue
			}
			if !l.Done {
				fmt.Fprintln(out, l.Line)
				continue
			}
			if l.Succeeded {
				fmt.Fprintf(out, "deployed: %s\n", l.Line)
				return nil
			}
			return fmt.Errorf("NOT deployed: %s\nthe commit is in the repository: a newer push replaces it, `gitk8s resume %s` tries it again", strings.TrimPrefix(l.Line, "not deployed; "), app.Name)
		}
	}
}

// webhookToken is the secret of an Application's webhook.
func (h *gitHooks) webhookToken(r *http.Request, key string) ([]byte, bool, error) {
	app, err := h.app(r.Context(), key)
	if err != nil || app == nil || app.Spec.Sync.WebhookSecretRef == nil {
		return nil, false, err
	}
	u, err := h.apps.Resource(secrets).Namespace(app.Namespace).Get(r.Context(), app.Spec.Sync.WebhookSecretRef.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	v, _, err := unstructured.NestedString(u.Object, "data", "token")
	if err != nil {
		return nil, false, err
	}
	token, err := base64.StdEncoding.DecodeString(v)
	return token, len(token) > 0, err
}
