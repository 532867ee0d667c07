package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	mobyuser "github.com/moby/sys/user"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// makeRootfs mounts the layers, lowest first, under a writable one, whose root is the
// user's.
func makeRootfs(dir string, layers []string, owner int) (string, error) {
	rootfs, upper, work := filepath.Join(dir, "rootfs"), filepath.Join(dir, wire.UpperDir), filepath.Join(dir, "work")
	for _, d := range []string{rootfs, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", fmt.Errorf("make root filesystem: %w", err)
		}
	}
	if err := os.Chown(upper, owner, owner); err != nil {
		return "", fmt.Errorf("make root filesystem: %w", err)
	}
	if len(layers) == 0 {
		return "", errors.New("make root filesystem: the image has no layers")
	}
	err := overlayByLayer(rootfs, upper, work, layers)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Kernels before 6.5 don't know lowerdir+.
		err = overlayByOptions(rootfs, upper, work, layers)
	}
	if err != nil {
		return "", fmt.Errorf("mount %d layers on %s: %w", len(layers), rootfs, err)
	}
	return rootfs, nil
}

// overlayByLayer passes each layer by itself, so that their number and the length
// of their names don't matter.
func overlayByLayer(target, upper, work string, layers []string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for i := len(layers) - 1; i >= 0; i-- { // overlayfs wants the highest first
		if err := unix.FsconfigSetString(fs, "lowerdir+", layers[i]); err != nil {
			if _, statErr := os.Stat(layers[i]); statErr != nil {
				return statErr
			}
			return err
		}
	}
	if err := unix.FsconfigSetString(fs, "upperdir", upper); err != nil {
		return err
	}
	if err := unix.FsconfigSetString(fs, "workdir", work); err != nil {
		return err
	}
	if userns.RunningInUserNS() {
		// Its notes have to be in attributes that a user may set.
		if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
			return err
		}
	}
	// Nothing is kept of a writable layer after a crash of the machine, so the
	// kernel need not sync it when it is unmounted. Not every kernel can do without.
	_ = unix.FsconfigSetFlag(fs, "volatile")
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// overlayByOptions is for older kernels: all layers in one string of at most a
// page, which is why they are named by descriptors.
func overlayByOptions(target, upper, work string, layers []string) error {
	names := make([]string, 0, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		fd, err := unix.Open(layers[i], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: layers[i], Err: err}
		}
		defer unix.Close(fd)
		names = append(names, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	options := "lowerdir=" + strings.Join(names, ":") + ",upperdir=" + upper + ",workdir=" + work
	if userns.RunningInUserNS() {
		options += ",userxattr"
	}
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("%d layers are more than this kernel's overlayfs takes", len(layers))
	}
	return unix.Mount("overlay", target, "overlay", 0, options)
}

// removeRootfs takes away a container's directory with the mounts in it.
func removeRootfs(dir string) error {
	if err := unix.Unmount(filepath.Join(dir, "rootfs"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.RemoveAll(dir)
}

// attachMounts puts the detached mounts that came with the request where
// libcontainer can bind them from. They were cloned in the worker's mount
// namespace, so it does not matter what has been mounted there since the shim
// started, and mount propagation works as there.
func attachMounts(dir string, mounts []*os.File, volumes []container.Mount, users userNamespace) (sources []string, err error) {
	defer func() {
		if err != nil {
			detachMounts(sources)
		}
	}()
	for i, f := range mounts {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return sources, fmt.Errorf("mount %d: %w", i, err)
		}
		target := filepath.Join(dir, "m"+strconv.Itoa(i))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = os.Mkdir(target, 0o700)
		} else {
			err = os.WriteFile(target, nil, 0o600)
		}
		if err != nil {
			return sources, fmt.Errorf("mount %d: %w", i, err)
		}
		if err := users.mapped(int(f.Fd()), volumes[i].Target); err != nil {
			return sources, err
		}
		if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return sources, fmt.Errorf("mount %d on %s: %w", i, target, err)
		}
		sources = append(sources, target)
	}
	return sources, nil
}

// detachMounts lets go of the shim's copies; the container has its own.
func detachMounts(sources []string) {
	for _, s := range sources {
		if err := unix.Unmount(s, unix.MNT_DETACH); err == nil || errors.Is(err, unix.EINVAL) { // or never mounted
			_ = os.Remove(s)
		}
	}
}

// user is who a container's processes run as.
type user struct {
	uid, gid int
	groups   []int
}

// status is who that is, for those who ask about the container.
func (u user) status() *container.User {
	out := &container.User{UID: int64(u.uid), GID: int64(u.gid), Groups: []int64{int64(u.gid)}}
	for _, g := range u.groups {
		out.Groups = append(out.Groups, int64(g))
	}
	slices.Sort(out.Groups)
	out.Groups = slices.Compact(out.Groups)
	return out
}

const maxUserFile = 1 << 20

// resolveUser reads the container's own user database, never following a link out
// of its root filesystem.
func resolveUser(rootfs string, cfg container.ContainerConfig) (user, error) {
	passwd, err := openInRoot(rootfs, "etc/passwd")
	if err != nil {
		return user{}, err
	}
	defer passwd.Close()
	group, err := openInRoot(rootfs, "etc/group")
	if err != nil {
		return user{}, err
	}
	defer group.Close()
	found, err := mobyuser.GetExecUser(cfg.User, nil, io.LimitReader(passwd, maxUserFile), io.LimitReader(group, maxUserFile))
	if err != nil {
		return user{}, fmt.Errorf("user %q in the image's /etc/passwd and /etc/group: %w", cfg.User, err)
	}
	u := user{uid: found.Uid, gid: found.Gid, groups: found.Sgids}
	if cfg.StrictGroups {
		u.groups = nil
	}
	for _, g := range cfg.SupplementalGroups {
		u.groups = append(u.groups, int(g))
	}
	return u, nil
}

// openInRoot opens a file as seen from inside rootfs; one that is missing, or is no
// plain file, is empty.
func openInRoot(rootfs, name string) (io.ReadCloser, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT}
	fd, err := unix.Openat2(root, name, how)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
			return io.NopCloser(strings.NewReader("")), nil
		}
		return nil, &os.PathError{Op: "open", Path: filepath.Join(rootfs, name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return io.NopCloser(strings.NewReader("")), nil
	}
	return f, nil
}
