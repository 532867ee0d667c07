package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	systemd = "/lib/systemd/systemd"
	// systemdUser is the ordinary user of the root file system, who lingers.
	systemdUser = "tester"
	unitsDir    = "/etc/systemd/system"
	unitName    = "cgroup2vm.service"
	// unit runs this program once the machine is up.
	unit = `[Unit]
Description=Tests
After=systemd-logind.service dbus.service systemd-user-sessions.service

[Service]
ExecStart=/programs/guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
`
)

// startSystemd makes systemd of this process, which then starts the tests.
func startSystemd() error {
	wants := filepath.Join(unitsDir, "multi-user.target.wants")
	err := errors.Join(
		os.MkdirAll(wants, 0o755),
		os.WriteFile(filepath.Join(unitsDir, unitName), []byte(unit), 0o644),
		os.Symlink("../"+unitName, filepath.Join(wants, unitName)),
		// The console is the tests' alone.
		os.Symlink("/dev/null", filepath.Join(unitsDir, "serial-getty@ttyS0.service")))
	if err != nil {
		return err
	}
	return os.NewSyscallError("exec", unix.Exec(systemd, []string{systemd}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}

// unpackRoot unpacks a root file system, if there is one, and frees the archive. The
// archive is our own: it is not looked at whether names lead out of it.
func unpackRoot(archive, root string) error {
	f, err := os.Open(archive)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return os.Remove(archive)
		}
		if err == nil {
			err = unpack(r, h, root)
		}
		if err != nil {
			return err
		}
	}
}

func unpack(r io.Reader, h *tar.Header, root string) error {
	name := filepath.Join(root, h.Name)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
	case tar.TypeReg:
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		return errors.Join(os.Symlink(h.Linkname, name), os.Lchown(name, h.Uid, h.Gid))
	case tar.TypeLink:
		return os.Link(filepath.Join(root, h.Linkname), name)
	case tar.TypeChar:
		return nil // of /dev, which the kernel fills
	default:
		return fmt.Errorf("%s: unexpected type %q", h.Name, h.Typeflag)
	}
	// In this order: another owner takes the bits off that give a program one's rights.
	return errors.Join(os.Lchown(name, h.Uid, h.Gid), unix.Chmod(name, uint32(h.Mode)))
}
