package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
)

// maxSeccompProfile bounds a profile's file.
const maxSeccompProfile = 1 << 20

// createError is a failure that Kubernetes' container runtimes find, and not the
// kubelet: its reason is CreateContainerError.
type createError struct{ error }

// Unwrap returns the cause.
func (e createError) Unwrap() error { return e.error }

// seccompProfile is the profile that applies to a container: its own, or the pod's.
func seccompProfile(pod *v1.Pod, spec *v1.Container) *v1.SeccompProfile {
	if sc := spec.SecurityContext; sc != nil && sc.SeccompProfile != nil {
		return sc.SeccompProfile
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.SeccompProfile
	}
	return nil
}

// localProfile reads the file of a profile of type Localhost, below the directory
// seccomp of the node ("Restrict a Container's Syscalls with seccomp"); nil is for
// all other types.
func (a *Agent) localProfile(p *v1.SeccompProfile) ([]byte, error) {
	if p == nil || p.Type != v1.SeccompProfileTypeLocalhost {
		return nil, nil
	}
	if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
		return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
	}
	root, err := os.OpenRoot(a.seccompDir())
	name := filepath.Join(a.seccompDir(), *p.LocalhostProfile)
	if err != nil {
		return nil, createError{fmt.Errorf("cannot load seccomp profile %q: %w", name, err)}
	}
	defer root.Close()
	// A root, so that no link leads to other files of the node.
	data, err := root.ReadFile(*p.LocalhostProfile)
	if err == nil && len(data) > maxSeccompProfile {
		err = fmt.Errorf("it has more than %d bytes", maxSeccompProfile)
	}
	if err != nil {
		return nil, createError{fmt.Errorf("cannot load seccomp profile %q: %w", name, err)}
	}
	return data, nil
}
