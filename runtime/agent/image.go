package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/registry"
)

// pullImage makes the image present by the container's pull policy, with the
// events of Kubernetes. On an error it returns the reason that the container
// waits for.
func (w *worker) pullImage(ctx context.Context, req startRequest) (*registry.Image, string, error) {
	ref := req.spec.Image
	if _, err := name.ParseReference(ref, name.WeakValidation); err != nil {
		w.event(v1.EventTypeWarning, "InspectFailed", fmt.Sprintf("Failed to apply default image tag %q: %v", ref, err), req.spec.Name)
		return nil, reasonInvalidName, fmt.Errorf("image %q: %w", ref, err)
	}
	keys, err := w.keychain(ctx, req.pod)
	if err != nil {
		return nil, reasonErrPull, err
	}
	a := w.a
	a.images.pulls.RLock()
	defer a.images.pulls.RUnlock()
	img, reason, err := w.pullWith(ctx, req, keys)
	if err == nil {
		a.images.used(img.Digest, a.cfg.Now())
	}
	return img, reason, err
}

// pullWith is pullImage with the credentials at hand.
func (w *worker) pullWith(ctx context.Context, req startRequest, keys authn.Keychain) (*registry.Image, string, error) {
	ref := req.spec.Image
	policy := pullPolicy(req.spec)
	if policy != registry.Always {
		img, err := w.a.cfg.Images.Pull(ctx, ref, registry.Never, keys)
		if err == nil {
			w.event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine", ref), req.spec.Name)
			return img, "", nil
		}
		if policy == registry.Never {
			msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", ref)
			w.event(v1.EventTypeWarning, "ErrImageNeverPull", msg, req.spec.Name)
			return nil, reasonNeverPull, errors.New(msg)
		}
	}
	w.event(v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", ref), req.spec.Name)
	img, err := w.a.cfg.Images.Pull(ctx, ref, policy, keys)
	if err != nil {
		if ctx.Err() == nil {
			w.event(v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", ref, err), req.spec.Name)
			w.event(v1.EventTypeWarning, "Failed", "Error: "+reasonErrPull, req.spec.Name)
		}
		return nil, reasonErrPull, fmt.Errorf("pull image %s: %w", ref, err)
	}
	w.event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %dms. Image size: %d bytes.",
		ref, img.PulledIn.Milliseconds(), img.Size), req.spec.Name)
	return img, "", nil
}

// pullPolicy is the container's, or what Kubernetes takes when none is set: Always
// for :latest, else IfNotPresent.
func pullPolicy(spec *v1.Container) registry.PullPolicy {
	switch spec.ImagePullPolicy {
	case v1.PullAlways:
		return registry.Always
	case v1.PullNever:
		return registry.Never
	case v1.PullIfNotPresent:
		return registry.IfNotPresent
	}
	if ref, err := name.ParseReference(spec.Image, name.WeakValidation); err == nil && ref.Identifier() == "latest" {
		return registry.Always
	}
	return registry.IfNotPresent
}

// keychain holds the credentials of the pod's imagePullSecrets, then the node's. A
// secret that does not exist is passed over, as in Kubernetes: the image may be
// public.
func (w *worker) keychain(ctx context.Context, pod *v1.Pod) (authn.Keychain, error) {
	var auths registry.Credentials
	for _, ref := range pod.Spec.ImagePullSecrets {
		s, err := w.a.objects.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			return nil, fmt.Errorf("imagePullSecret %s: %w", ref.Name, err)
		}
		if s == nil {
			w.event(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve image pull secret %q; attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		found, err := secretAuths(s)
		if err != nil {
			return nil, fmt.Errorf("imagePullSecret %s: %w", ref.Name, err)
		}
		auths = append(auths, found...)
	}
	if w.a.cfg.DockerConfig != "" {
		data, err := os.ReadFile(w.a.cfg.DockerConfig)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read registry credentials of the node: %w", err)
		}
		if err == nil {
			found, err := registry.ParseDockerConfig(data)
			if err != nil {
				return nil, fmt.Errorf("registry credentials in %s: %w", w.a.cfg.DockerConfig, err)
			}
			auths = append(auths, found...)
		}
	}
	return auths, nil
}

func secretAuths(s *v1.Secret) (registry.Credentials, error) {
	switch s.Type {
	case v1.SecretTypeDockerConfigJson:
		return registry.ParseDockerConfig(s.Data[v1.DockerConfigJsonKey])
	case v1.SecretTypeDockercfg:
		return registry.ParseDockercfg(s.Data[v1.DockerConfigKey])
	}
	return nil, fmt.Errorf("secret is of type %q; it must be %s or %s", s.Type, v1.SecretTypeDockerConfigJson, v1.SecretTypeDockercfg)
}

// rememberSignal keeps an image's stop signal for when a container is stopped.
func (a *Agent) rememberSignal(image, signal string) {
	if signal != "" {
		a.stopSignals.Store(image, signal)
	}
}

// stopSignal is the container's own, the image's, or SIGTERM.
func (a *Agent) stopSignal(spec *v1.Container, image string) syscall.Signal {
	want := ""
	if spec.Lifecycle != nil && spec.Lifecycle.StopSignal != nil {
		want = string(*spec.Lifecycle.StopSignal)
	} else if s, ok := a.stopSignals.Load(image); ok {
		want = s.(string)
	}
	return parseSignal(want)
}

func parseSignal(s string) syscall.Signal {
	s = strings.ToUpper(strings.TrimSpace(s))
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	if s != "" && !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	if sig := unix.SignalNum(s); sig != 0 {
		return sig
	}
	var rt int
	if _, err := fmt.Sscanf(s, "SIGRTMIN+%d", &rt); err == nil && rt >= 0 && rt <= 30 {
		return syscall.Signal(34 + rt)
	}
	return syscall.SIGTERM
}
