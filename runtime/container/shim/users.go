package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
)

// userNamespace is the pod's own, in which its user 0 is one of nobody's on the machine
// (KEP-127). The zero value is the machine's.
type userNamespace struct {
	base int
	file *os.File
	// dir can be searched by everybody: in the sandbox's directory the pod's root has no
	// business.
	dir string
}

// stages are where the directory may go: it hides nothing where there is nothing.
var stages = []string{"/mnt", "/media", "/srv", "/opt", "/sys/kernel/tracing", "/sys/kernel/debug", "/sys/fs/fuse/connections"}

// openUsers finds the namespace to which the pod's network belongs.
func openUsers(cfg container.SandboxConfig) (userNamespace, error) {
	u := userNamespace{base: int(cfg.UserBase)}
	if u.base == 0 {
		return u, nil
	}
	network, err := os.Open(cfg.NetNS)
	if err != nil {
		return u, fmt.Errorf("user namespace: %w", err)
	}
	defer network.Close()
	fd, err := unix.IoctlRetInt(int(network.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return u, fmt.Errorf("user namespace of %s: %w", cfg.NetNS, err)
	}
	unix.CloseOnExec(fd)
	u.file = os.NewFile(uintptr(fd), "user namespace")
	for _, dir := range stages {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			continue
		}
		if unix.Mount("users", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711") == nil {
			u.dir = dir
			return u, nil
		}
	}
	return u, fmt.Errorf("user namespace: none of the directories %q is there and empty", stages)
}

func (u userNamespace) private() bool { return u.base != 0 }

// join makes a container's processes those of the namespace.
func (u userNamespace) join(config *configs.Config) {
	if !u.private() {
		return
	}
	config.Namespaces.Add(configs.NEWUSER, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), u.file.Fd()))
	ids := []configs.IDMap{{ContainerID: 0, HostID: int64(u.base), Size: container.UserCount}}
	config.UIDMappings, config.GIDMappings = ids, ids
}

// mapped makes the files of a detached mount those of the pod: what is root's on disk is
// its root's.
func (u userNamespace) mapped(mount int, what string) error {
	if !u.private() {
		return nil
	}
	err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(u.file.Fd())})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("map the users of %s for hostUsers: false: its file system, or this kernel, has no ID-mapped mounts: %w", what, err)
	}
	if err != nil {
		return fmt.Errorf("map the users of %s for hostUsers: false: %w", what, err)
	}
	return nil
}

// mapLayers returns the layers as the pod is to see them, and how to let go of them once
// they are mounted.
func (u userNamespace) mapLayers(id string, layers []string) (_ []string, release func(), err error) {
	if !u.private() {
		return layers, func() {}, nil
	}
	var mapped []string
	release = func() {
		detachMounts(mapped)
		_ = os.Remove(filepath.Join(u.dir, id+".layers"))
	}
	for i, layer := range layers {
		target := filepath.Join(u.dir, id+".layers", strconv.Itoa(i))
		if err := os.MkdirAll(target, 0o700); err != nil {
			return nil, release, err
		}
		mapped = append(mapped, target)
		fd, err := unix.OpenTree(unix.AT_FDCWD, layer, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, release, &os.PathError{Op: "open", Path: layer, Err: err}
		}
		err = u.mapped(fd, "the image")
		if err == nil {
			err = unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, release, err
		}
	}
	return mapped, release, nil
}

// reach returns a way to the root filesystem that the pod's root can go, until release.
// The directory stays for libcontainer, which begins an exec there.
func (u userNamespace) reach(id, rootfs string) (path string, release func(), err error) {
	if !u.private() {
		return rootfs, func() {}, nil
	}
	path = filepath.Join(u.dir, id)
	if err := os.MkdirAll(path, 0o711); err != nil {
		return "", nil, err
	}
	if err := unix.Mount(rootfs, path, "", unix.MS_BIND, ""); err != nil {
		return "", nil, fmt.Errorf("bind the root filesystem to %s: %w", path, err)
	}
	return path, func() { _ = unix.Unmount(path, unix.MNT_DETACH) }, nil
}

// forget removes what reach has left.
func (u userNamespace) forget(id string) {
	if u.private() {
		_ = os.Remove(filepath.Join(u.dir, id))
	}
}

// own makes files the pod's root's, which hands them on to the container's user.
func (u userNamespace) own(files ...*os.File) error {
	if !u.private() {
		return nil
	}
	for _, f := range files {
		if err := f.Chown(u.base, u.base); err != nil {
			return fmt.Errorf("give a standard file to the pod's root: %w", err)
		}
	}
	return nil
}

// check refuses users and groups that the namespace has not, in words that say why.
func (u userNamespace) check(who user) error {
	if !u.private() {
		return nil
	}
	for _, id := range append([]int{who.uid, who.gid}, who.groups...) {
		if id >= container.UserCount {
			return fmt.Errorf("container has user or group %d, and with hostUsers: false there are those from 0 to %d", id, container.UserCount-1)
		}
	}
	return nil
}
