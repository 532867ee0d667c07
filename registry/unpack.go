package registry

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Limits bound what one image may cost. Zero fields take the default.
type Limits struct {
	// Layers of one image: 127, what container engines build at most.
	Layers int
	// LayerBytes of one unpacked layer: 16 GiB.
	LayerBytes int64
	// LayerEntries of one layer: 1,000,000.
	LayerEntries int
	// ConfigBytes of the image's configuration: 4 MiB.
	ConfigBytes int64
	// Ratio of unpacked to packed bytes beyond the first 256 MiB: 200.
	Ratio int64
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.LayerBytes, 16<<30)
	set(&l.ConfigBytes, 4<<20)
	set(&l.Ratio, 200)
	if l.Layers == 0 {
		l.Layers = 127
	}
	if l.LayerEntries == 0 {
		l.LayerEntries = 1_000_000
	}
	return l
}

const (
	ratioFree    = 256 << 20
	maxEntryName = 4096
	whiteout     = ".wh."
	opaque       = ".wh..wh..opq"
	opaqueXattr  = "trusted.overlay.opaque"
	// userOpaqueXattr is that of overlayfs mounted with userxattr, in a user namespace.
	userOpaqueXattr = "user.overlay.opaque"
	paxXattr        = "SCHILY.xattr."
	maxZstdWindow   = 128 << 20
)

var (
	errDotDot   = errors.New("its name leads out of the layer with '..'")
	errAbsolute = errors.New("its name is absolute")
	errDevice   = errors.New("it is a device, which an image may not bring")
	errTooBig   = errors.New("the layer unpacks to more than is allowed: raise the limit if it is meant to be that large")
	errEntries  = errors.New("the layer has more entries than is allowed")
	errBomb     = errors.New("the layer unpacks to suspiciously many times its packed size: it looks like a decompression bomb")
)

// decompress recognises gzip and zstd by their first bytes, since media types of
// layers are often wrong; anything else is taken for a plain tar.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	default:
		return in, func() {}, nil
	}
}

// unpacker writes one layer below a directory that nobody else uses. Every name is
// resolved by the kernel as if the directory were the root (openat2,
// RESOLVE_IN_ROOT): a link in the layer can lead nowhere else.
type unpacker struct {
	root   int
	limits Limits

	entries int
	written int64 // by the sizes that the headers declare

	parent     int // cache: the directory of the last entry
	parentName string
	times      []dirTime
}

// dirTime is set at the end, since filling a directory changes it.
type dirTime struct {
	name string
	at   time.Time
}

// unpack reads a tar stream to its end.
func unpack(dir string, r io.Reader, limits Limits) error {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return local(&os.PathError{Op: "open", Path: dir, Err: err})
	}
	defer unix.Close(root)
	u := &unpacker{root: root, limits: limits, parent: -1}
	defer u.forgetParent()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
			return &LayerError{Err: err}
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := u.entry(h, in); err != nil {
			return refused(h.Name, err)
		}
	}
	return u.setTimes()
}

// refused names the entry, unless the cause lies elsewhere: the disk, the registry,
// or the layer as a whole.
func refused(entry string, err error) error {
	var disk *localError
	var layer *LayerError
	var read *readError
	if errors.As(err, &disk) || errors.As(err, &layer) || errors.As(err, &read) {
		return err
	}
	return &LayerError{Entry: entry, Err: err}
}

// readError is trouble with the stream, not with what is in it.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// meter bounds the unpacked bytes as they come out of the decompressor.
type meter struct {
	r      io.Reader
	limits Limits
	packed func() int64 // bytes that went into the decompressor
	n      int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.n > m.limits.LayerBytes {
		return 0, &LayerError{Err: errTooBig}
	}
	if m.n > ratioFree && m.n > m.limits.Ratio*m.packed() {
		return 0, &LayerError{Err: errBomb}
	}
	return n, err
}

// cleanName returns the slash-separated name below the root, "." for the root.
func cleanName(name string) (string, error) {
	if len(name) > maxEntryName {
		return "", errors.New("its name is too long")
	}
	if strings.HasPrefix(name, "/") {
		return "", errAbsolute
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errDotDot
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("its name has a zero byte")
	}
	return path.Clean(name), nil
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	if u.entries++; u.entries > u.limits.LayerEntries {
		return errEntries
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return errors.New("it stands for the root and is no directory")
		}
		return u.metadata(u.root, ".", h)
	}
	parent, err := u.open(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, whiteout) {
		return u.whiteout(parent, base)
	}
	if err := u.create(parent, base, h, body); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		u.times = append(u.times, dirTime{name, h.ModTime})
	}
	return nil
}

func inRoot(root int, name string, flags uint64) (int, error) {
	return unix.Openat2(root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
}

// open returns the directory, made with its parents where missing. The descriptor
// is kept for the entries that follow.
func (u *unpacker) open(dir string) (int, error) {
	if u.parent >= 0 && u.parentName == dir {
		return u.parent, nil
	}
	fd, err := inRoot(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = u.makeAll(dir)
	}
	if err != nil {
		return -1, fmt.Errorf("its directory: %w", err)
	}
	u.forgetParent()
	u.parent, u.parentName = fd, dir
	return fd, nil
}

func (u *unpacker) forgetParent() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
	}
	u.parent, u.parentName = -1, ""
}

func (u *unpacker) makeAll(dir string) (int, error) {
	at := ""
	for part := range strings.SplitSeq(dir, "/") {
		above := at
		if above == "" {
			above = "."
		}
		at = path.Join(at, part)
		fd, err := inRoot(u.root, at, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) {
			if fd, err = inRoot(u.root, above, unix.O_PATH|unix.O_DIRECTORY); err != nil {
				return -1, err
			}
			// A dangling link in the way stays: EEXIST.
			if err = unix.Mkdirat(fd, part, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				err = local(&os.PathError{Op: "mkdir", Path: at, Err: err})
			}
		}
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
	}
	return inRoot(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
}

// whiteout turns the markers of the OCI image specification into those of overlayfs.
func (u *unpacker) whiteout(parent int, base string) error {
	if base == opaque {
		return local(setOpaque(procPath(parent, ".")))
	}
	if strings.HasPrefix(base, whiteout+whiteout) {
		return nil // aufs' own notes
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return errors.New("it is a whiteout of nothing")
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		// A whiteout hides what is below this layer only: the directory stays.
		return local(setOpaque(procPath(parent, name)))
	case err == nil:
		return nil // what is there hides it anyway
	}
	return local(unix.Mknodat(parent, name, unix.S_IFCHR, 0))
}

// setOpaque hides what lower layers have in a directory.
func setOpaque(dir string) error {
	err := unix.Lsetxattr(dir, opaqueXattr, []byte("y"), 0)
	if errors.Is(err, unix.EPERM) {
		err = unix.Lsetxattr(dir, userOpaqueXattr, []byte("y"), 0)
	}
	return err
}

func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

// create makes the entry in its directory. base has no slash and no link is
// followed.
func (u *unpacker) create(parent int, base string, h *tar.Header, body io.Reader) error {
	hidden, err := u.clear(parent, base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		// A sparse file writes far more than the stream has.
		if u.written += h.Size; h.Size > u.limits.LayerBytes || u.written > u.limits.LayerBytes {
			return errTooBig
		}
		if err := u.file(parent, base, body); err != nil {
			return err
		}
	case tar.TypeDir:
		if err := unix.Mkdirat(parent, base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return local(err)
		}
		if hidden {
			if err := setOpaque(procPath(parent, base)); err != nil {
				return local(err)
			}
		}
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return linkError(err)
		}
	case tar.TypeLink:
		return u.link(parent, base, h.Linkname) // its metadata is the target's
	case tar.TypeFifo:
		if err := unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0); err != nil {
			return local(err)
		}
	case tar.TypeChar, tar.TypeBlock:
		return errDevice
	default:
		return fmt.Errorf("it is of type %q, which is not known", h.Typeflag)
	}
	return u.metadata(parent, base, h)
}

// linkError tells a bad link from a bad disk.
func linkError(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("its link can't be made: %w", err)
	}
	return local(err)
}

// clear makes way for an entry. hidden says that a whiteout stood there.
func (u *unpacker) clear(parent int, base string, keepDir bool) (hidden bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("its place: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return st.Mode&unix.S_IFMT == unix.S_IFCHR, local(unix.Unlinkat(parent, base, 0))
	}
	if keepDir {
		return false, nil
	}
	err = os.RemoveAll(procPath(parent, base))
	return false, local(err)
}

func (u *unpacker) file(parent int, base string, body io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return local(err)
	}
	f := os.NewFile(uintptr(fd), base)
	_, err = io.Copy(diskWriter{f}, body)
	if disk := (*localError)(nil); err != nil && !errors.As(err, &disk) {
		err = &readError{err}
	}
	if closeErr := f.Close(); err == nil {
		err = local(closeErr)
	}
	return err
}

// diskWriter tells errors of the disk from errors of the registry.
type diskWriter struct{ f *os.File }

func (w diskWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	return n, local(err)
}

func (u *unpacker) link(parent int, base, to string) error {
	to, err := cleanName(to)
	if err != nil {
		return fmt.Errorf("it is a hard link to %q: %w", to, err)
	}
	dir, err := inRoot(u.root, path.Dir(to), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("it is a hard link to %q, which is not in this layer: %w", to, err)
	}
	defer unix.Close(dir)
	if err := unix.Linkat(dir, path.Base(to), parent, base, 0); err != nil {
		return fmt.Errorf("it is a hard link to %q, which is not in this layer: %w", to, err)
	}
	return nil
}

// metadata sets owner, then mode, then extended attributes: each would be undone by
// the one before it.
func (u *unpacker) metadata(parent int, base string, h *tar.Header) error {
	at := procPath(parent, base)
	// EINVAL: a user namespace in which the owner does not exist. Nothing can run as
	// that user either, so the file stays with who unpacks it.
	if err := os.Lchown(at, h.Uid, h.Gid); err != nil && !errors.Is(err, unix.EINVAL) {
		return local(err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(at, uint32(h.Mode)&0o7777); err != nil {
			return local(err)
		}
	}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		// Attributes that steer overlayfs, or a security module, are not the image's
		// to set.
		if !ok || attr != "security.capability" && (!strings.HasPrefix(attr, "user.") || strings.HasPrefix(attr, "user.overlay.")) && !strings.HasPrefix(attr, "system.posix_acl_") {
			continue
		}
		err := unix.Lsetxattr(at, attr, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("its attribute %s: %w", attr, err)
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return local(setTime(parent, base, h.ModTime))
}

func setTime(parent int, base string, at time.Time) error {
	if at.Unix() < 0 || at.Year() > 2400 {
		at = time.Unix(0, 0)
	}
	ts := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) setTimes() error {
	for _, d := range u.times {
		parent, err := inRoot(u.root, path.Dir(d.name), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			continue // replaced by a later entry
		}
		err = setTime(parent, path.Base(d.name), d.at)
		_ = unix.Close(parent)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return local(err)
		}
	}
	return nil
}
