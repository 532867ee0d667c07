package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/moby/sys/mountinfo"
	v1 "k8s.io/api/core/v1"
)

// Provisioner marks the volumes whose directories this package makes and removes,
// in a volume's annotation pv.kubernetes.io/provisioned-by.
const Provisioner = "gitk8s.dev/local-path"

const provisionedBy = "pv.kubernetes.io/provisioned-by"

// usesClaim says whether a volume is one of a PersistentVolumeClaim.
func usesClaim(v *v1.Volume) bool { return v.PersistentVolumeClaim != nil || v.Ephemeral != nil }

// setUpClaim finds the files of a claim's volume, makes them if they are ours to
// make, and leaves a link to them in the pod's directory. A link and not a mount:
// whatever removes a pod's directory never gets at the data. What a link says stays
// true while the pod lives, also when the API is away.
func (m *Manager) setUpClaim(ctx context.Context, pod *v1.Pod, v *v1.Volume) error {
	link := m.volumeDir(string(pod.UID), v.Name)
	if _, err := os.Readlink(link); err == nil {
		return nil
	}
	pv, err := m.sources.PersistentVolume(ctx, pod, v)
	if err != nil {
		return err
	}
	if pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == v1.PersistentVolumeBlock {
		return fmt.Errorf("persistentvolume %s is a block device, which is not supported", pv.Name)
	}
	var path string
	switch {
	case pv.Spec.HostPath != nil:
		path = pv.Spec.HostPath.Path
		kind := v1.HostPathUnset
		if pv.Spec.HostPath.Type != nil {
			kind = *pv.Spec.HostPath.Type
		}
		err = checkHostPath(path, kind)
	case pv.Spec.Local != nil:
		path = pv.Spec.Local.Path
		err = m.setUpLocal(pv, pod)
	default:
		err = fmt.Errorf("persistentvolume %s is of a type that is not supported; use local or hostPath", pv.Name)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	return os.Symlink(path, link)
}

func (m *Manager) setUpLocal(pv *v1.PersistentVolume, pod *v1.Pod) error {
	path := pv.Spec.Local.Path
	if pv.Annotations[provisionedBy] == Provisioner {
		if err := m.makeLocal(path); err != nil {
			return err
		}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("path %q does not exist", path)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("path %q is not a directory", path)
	}
	gid := fsGroup(pod)
	if gid == nil {
		return nil
	}
	policy := pod.Spec.SecurityContext.FSGroupChangePolicy
	if policy != nil && *policy == v1.FSGroupChangeOnRootMismatch && belongsTo(info, *gid) {
		return nil
	}
	return giveToGroup(path, int(*gid))
}

// makeLocal makes the directory of a volume of ours: everybody may write, for who
// runs in the containers is not known.
func (m *Manager) makeLocal(path string) error {
	if !m.isLocal(path) {
		return fmt.Errorf("path %q is not in %s, where the volumes of this node are", path, m.localDir)
	}
	if err := os.MkdirAll(m.localDir, 0o750); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o777)
}

// isLocal says whether a path names a directory right below that of local volumes.
func (m *Manager) isLocal(path string) bool {
	return path == filepath.Clean(path) && filepath.Dir(path) == m.localDir
}

// InUse says whether a pod of this node has a local volume set up.
func (m *Manager) InUse(path string) (bool, error) {
	links, err := filepath.Glob(filepath.Join(m.podsDir, "*", "volumes", "*"))
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(links, func(link string) bool {
		target, err := os.Readlink(link)
		return err == nil && target == path
	}), nil
}

// RemoveLocal removes the directory of a local volume with all that is in it, and
// nothing else: a link is not followed, and what is mounted inside is not entered.
// Removing what is gone succeeds.
func (m *Manager) RemoveLocal(path string) error {
	if !m.isLocal(path) {
		return fmt.Errorf("path %q is not in %s, where the volumes of this node are", path, m.localDir)
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return os.Remove(path)
	}
	if err := UnmountBelow(path); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return err
	}
	for _, mount := range left {
		if rel, err := filepath.Rel(real, mount.Mountpoint); err == nil && filepath.IsLocal(rel) {
			return fmt.Errorf("something is mounted on %s", mount.Mountpoint)
		}
	}
	return os.RemoveAll(path)
}

// belongsTo says whether a directory is writable for a group and hands that on.
func belongsTo(info fs.FileInfo, gid int64) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int64(st.Gid) == gid && info.Mode()&fs.ModeSetgid != 0 && info.Mode().Perm()&0o070 == 0o070
}

// giveToGroup lets a group read and write all files of a volume ("Configure a
// Security Context", fsGroup). A link is given away itself and never followed out.
func giveToGroup(path string, gid int) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ifExists(root.Lchown(name, -1, gid)); err != nil {
			return fmt.Errorf("give %s to group %d: %w", name, gid, err)
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		mode := info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) | 0o060
		if d.IsDir() {
			mode |= 0o070 | fs.ModeSetgid
		}
		return root.Chmod(name, mode)
	})
}
