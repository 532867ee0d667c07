package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
)

// Sources gives a Manager the objects that volumes refer to. A nil object without
// an error is one that does not exist.
type Sources interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
	// PersistentVolume returns the volume that the claim of a pod's volume is bound
	// to, or an error that says why there is none for this node.
	PersistentVolume(ctx context.Context, pod *v1.Pod, v *v1.Volume) (*v1.PersistentVolume, error)
	// Token returns a token of the pod's service account.
	Token(ctx context.Context, pod *v1.Pod, src *v1.ServiceAccountTokenProjection) (string, error)
}

// Manager makes and removes the volumes of the pods of one node. It is safe for
// concurrent use; calls for one pod are done one after the other.
type Manager struct {
	podsDir     string
	localDir    string
	sources     Sources
	allocatable func() v1.ResourceList

	mu    sync.Mutex
	locks map[string]*podLock
}

type podLock struct {
	sync.Mutex
	users int
}

// NewManager returns a manager that keeps the volumes of pod uid in
// podsDir/<uid>/volumes, and makes local volumes in localDir, an absolute path.
// allocatable is what the node offers to pods.
func NewManager(podsDir, localDir string, sources Sources, allocatable func() v1.ResourceList) *Manager {
	return &Manager{podsDir: podsDir, localDir: filepath.Clean(localDir), sources: sources, allocatable: allocatable, locks: map[string]*podLock{}}
}

func (m *Manager) lock(uid string) (unlock func()) {
	m.mu.Lock()
	l := m.locks[uid]
	if l == nil {
		l = &podLock{}
		m.locks[uid] = l
	}
	l.users++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.locks, uid)
		}
	}
}

func (m *Manager) volumeDir(uid, name string) string {
	return filepath.Join(m.podsDir, uid, "volumes", name)
}

func (m *Manager) subPathsDir(uid string) string {
	return filepath.Join(m.podsDir, uid, "subpaths")
}

// SetUp makes every volume of pod, or brings the files of existing ones up to
// date. Each error names its volume.
func (m *Manager) SetUp(ctx context.Context, pod *v1.Pod) error {
	defer m.lock(string(pod.UID))()
	for i := range pod.Spec.Volumes {
		if err := m.setUp(ctx, pod, &pod.Spec.Volumes[i]); err != nil {
			return fmt.Errorf("volume %q: %w", pod.Spec.Volumes[i].Name, err)
		}
	}
	return nil
}

// Refresh writes the files of the volumes that follow API objects or the pod's own
// metadata again, where they changed.
func (m *Manager) Refresh(ctx context.Context, pod *v1.Pod) error {
	defer m.lock(string(pod.UID))()
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !isRendered(v) {
			continue
		}
		if err := m.setUp(ctx, pod, v); err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", v.Name, err))
		}
	}
	return errors.Join(errs...)
}

func isRendered(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func (m *Manager) setUp(ctx context.Context, pod *v1.Pod, v *v1.Volume) error {
	gid := fsGroup(pod)
	dir := m.volumeDir(string(pod.UID), v.Name)
	switch {
	case v.HostPath != nil:
		kind := v1.HostPathUnset
		if v.HostPath.Type != nil {
			kind = *v.HostPath.Type
		}
		return checkHostPath(v.HostPath.Path, kind)
	case v.EmptyDir != nil:
		return m.setUpEmptyDir(dir, v.EmptyDir, gid)
	case usesClaim(v):
		return m.setUpClaim(ctx, pod, v)
	case isRendered(v):
		payload, err := m.payload(ctx, pod, v)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if holdsSecrets(v) {
			// Secrets never touch a disk.
			if err := mountTmpfs(dir, 0); err != nil {
				return err
			}
		}
		mode := fs.FileMode(0o755)
		if gid != nil {
			mode |= fs.ModeSetgid
		}
		if err := setOwner(dir, mode, gid); err != nil {
			return err
		}
		_, err = Write(dir, payload, gid)
		return err
	}
	return fmt.Errorf("this kind of volume is not supported; use emptyDir, configMap, secret, downwardAPI, projected, hostPath or persistentVolumeClaim")
}

func (m *Manager) setUpEmptyDir(dir string, src *v1.EmptyDirVolumeSource, gid *int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	switch src.Medium {
	case v1.StorageMediumDefault:
	case v1.StorageMediumMemory:
		var size int64
		if src.SizeLimit != nil {
			size = src.SizeLimit.Value()
		}
		if err := mountTmpfs(dir, size); err != nil {
			return err
		}
	default:
		return fmt.Errorf("emptyDir medium %q is not supported; leave it out or use Memory", src.Medium)
	}
	mode := fs.FileMode(0o777)
	if gid != nil {
		mode |= fs.ModeSetgid
	}
	return setOwner(dir, mode, gid)
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func holdsSecrets(v *v1.Volume) bool {
	if v.Secret != nil {
		return true
	}
	if v.Projected == nil {
		return false
	}
	for _, s := range v.Projected.Sources {
		if s.Secret != nil || s.ServiceAccountToken != nil {
			return true
		}
	}
	return false
}

// payload computes the files of a volume that follows API objects.
func (m *Manager) payload(ctx context.Context, pod *v1.Pod, v *v1.Volume) (Payload, error) {
	switch {
	case v.ConfigMap != nil:
		cm, err := m.sources.ConfigMap(ctx, pod.Namespace, v.ConfigMap.Name)
		if err != nil {
			return nil, err
		}
		return configMapPayload(cm, v.ConfigMap.Name, v.ConfigMap.Items, modeOr(v.ConfigMap.DefaultMode), isTrue(v.ConfigMap.Optional))
	case v.Secret != nil:
		s, err := m.sources.Secret(ctx, pod.Namespace, v.Secret.SecretName)
		if err != nil {
			return nil, err
		}
		return secretPayload(s, v.Secret.SecretName, v.Secret.Items, modeOr(v.Secret.DefaultMode), isTrue(v.Secret.Optional))
	case v.DownwardAPI != nil:
		return downwardPayload(pod, v.DownwardAPI.Items, modeOr(v.DownwardAPI.DefaultMode), m.allocatable())
	}
	out := Payload{}
	mode := modeOr(v.Projected.DefaultMode)
	for _, src := range v.Projected.Sources {
		part, err := m.projection(ctx, pod, src, mode)
		if err != nil {
			return nil, err
		}
		for name, file := range part {
			out[name] = file
		}
	}
	return out, nil
}

func (m *Manager) projection(ctx context.Context, pod *v1.Pod, src v1.VolumeProjection, mode fs.FileMode) (Payload, error) {
	switch {
	case src.ConfigMap != nil:
		cm, err := m.sources.ConfigMap(ctx, pod.Namespace, src.ConfigMap.Name)
		if err != nil {
			return nil, err
		}
		return configMapPayload(cm, src.ConfigMap.Name, src.ConfigMap.Items, mode, isTrue(src.ConfigMap.Optional))
	case src.Secret != nil:
		s, err := m.sources.Secret(ctx, pod.Namespace, src.Secret.Name)
		if err != nil {
			return nil, err
		}
		return secretPayload(s, src.Secret.Name, src.Secret.Items, mode, isTrue(src.Secret.Optional))
	case src.DownwardAPI != nil:
		return downwardPayload(pod, src.DownwardAPI.Items, mode, m.allocatable())
	case src.ServiceAccountToken != nil:
		token, err := m.sources.Token(ctx, pod, src.ServiceAccountToken)
		if err != nil {
			return nil, err
		}
		return Payload{src.ServiceAccountToken.Path: {Data: []byte(token), Mode: mode}}, nil
	}
	return nil, fmt.Errorf("this kind of projected source is not supported; use configMap, secret or downwardAPI")
}

// Path returns the directory, or for a hostPath perhaps the file, that holds the volume on
// this machine.
func (m *Manager) Path(pod *v1.Pod, name string) (string, error) {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Name != name {
			continue
		}
		if v.HostPath != nil {
			return v.HostPath.Path, nil
		}
		if usesClaim(v) {
			return os.Readlink(m.volumeDir(string(pod.UID), name))
		}
		return m.volumeDir(string(pod.UID), name), nil
	}
	return "", fmt.Errorf("pod %s/%s has no volume %q", pod.Namespace, pod.Name, name)
}

// TearDown unmounts and removes all volumes and subPath mounts of a pod, made by
// this process or by an earlier one.
func (m *Manager) TearDown(uid string) error {
	defer m.lock(uid)()
	for _, dir := range []string{m.subPathsDir(uid), filepath.Join(m.podsDir, uid, "volumes")} {
		if err := UnmountBelow(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove volumes of pod %s: %w", uid, err)
		}
	}
	return nil
}
