package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// makeTar makes a layer. A body of "" leaves the size as the header says.
func makeTar(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := h.PAXRecords["body"]
		delete(h.PAXRecords, "body")
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"body": body}}
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

func symlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}

func unpackBytes(dir string, layer []byte) error {
	limits := Limits{LayerEntries: 1000, LayerBytes: 1 << 20}.withDefaults()
	return unpack(dir, &meter{r: bytes.NewReader(layer), limits: limits, packed: func() int64 { return int64(len(layer)) }}, limits)
}

func TestUnpackRefuses(t *testing.T) {
	device := tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}
	char := tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}
	zero := tar.Header{Name: "etc", Typeflag: tar.TypeChar}
	for _, c := range []struct {
		name    string
		headers []tar.Header
		entry   string
		want    error
	}{
		{"dot dot", []tar.Header{file("../x", "evil")}, "../x", errDotDot},
		{"dot dot inside", []tar.Header{file("a/../../x", "evil")}, "a/../../x", errDotDot},
		{"only dot dot", []tar.Header{dir("..")}, "..", errDotDot},
		{"absolute", []tar.Header{file("/x", "evil")}, "/x", errAbsolute},
		{"block device", []tar.Header{device}, "dev/sda", errDevice},
		{"character device", []tar.Header{char}, "null", errDevice},
		{"overlayfs whiteout", []tar.Header{zero}, "etc", errDevice},
		{"hard link out", []tar.Header{hardlink("x", "../../etc/passwd")}, "x", errDotDot},
		{"absolute hard link", []tar.Header{hardlink("x", "/etc/passwd")}, "x", errAbsolute},
		{"hard link to nothing", []tar.Header{hardlink("x", "y")}, "x", unix.ENOENT},
		{"hard link by way of a link", []tar.Header{symlink("a", "/etc"), hardlink("x", "a/hostname")}, "x", unix.ENOENT},
		{"below a file", []tar.Header{file("a", ""), file("a/b", "")}, "a/b", unix.ENOTDIR},
		{"whiteout of nothing", []tar.Header{file("a/.wh...", "")}, "a/.wh...", nil},
		{"whiteout of itself", []tar.Header{file("a/.wh..", "")}, "a/.wh..", nil},
		{"link loop", []tar.Header{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}, "a/x", unix.ELOOP},
		{"long name", []tar.Header{file(strings.Repeat("a/", 3000)+"x", "")}, "", nil},
		{"root is a link", []tar.Header{symlink("./", "/etc")}, "./", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			target := filepath.Join(base, "layer")
			if err := os.Mkdir(target, 0o755); err != nil {
				t.Fatal(err)
			}
			err := unpackBytes(target, makeTar(t, c.headers...))
			var bad *LayerError
			if !errors.As(err, &bad) {
				t.Fatalf("error %v (%T)", err, err)
			}
			if c.entry != "" && bad.Entry != c.entry {
				t.Errorf("entry %q in %v", bad.Entry, err)
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if left, _ := os.ReadDir(base); len(left) != 1 {
				t.Errorf("something came out of the layer: %v", left)
			}
		})
	}
}

// Links out of the layer are what they are, a matter of the container; what is
// written by way of them stays in the layer.
func TestUnpackStaysInside(t *testing.T) {
	base := t.TempDir()
	target, outside := filepath.Join(base, "layer"), filepath.Join(base, "outside")
	for _, d := range []string{target, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{outside, "../outside", "../../../../../.." + outside} {
		err := unpackBytes(target, makeTar(t,
			dir("real"+outside), dir("outside"), symlink("way", to), file("way/evil", "x"), dir("way/sub"), file("way/.wh.gone", "")))
		var bad *LayerError
		if err != nil && !errors.As(err, &bad) {
			t.Errorf("link to %s: %v", to, err)
		}
		left, err := os.ReadDir(outside)
		if err != nil || len(left) > 0 {
			t.Fatalf("link to %s: %v came out (%v)", to, left, err)
		}
	}
	if err := unpackBytes(target, makeTar(t, symlink("link", outside), file("link", "replaced"))); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "link")); err != nil || string(b) != "replaced" {
		t.Errorf("%q %v", b, err)
	}
}

func TestUnpackKeeps(t *testing.T) {
	target := t.TempDir()
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	suid := file("bin/su", "program")
	suid.Mode, suid.Uid, suid.Gid, suid.ModTime = 0o4755, 0, 42, at
	capable := file("bin/ping", "program")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capable.Uid = 7
	capable.PAXRecords["SCHILY.xattr.security.capability"] = capability
	capable.PAXRecords["SCHILY.xattr.trusted.overlay.redirect"] = "/etc"
	home := dir("home/web")
	home.Uid, home.Gid, home.Mode, home.ModTime = 1001, 1002, 0o1750, at
	err := unpackBytes(target, makeTar(t, suid, capable, home, file("home/web/f", "x"), symlink("sh", "bin/su"),
		hardlink("bin/su2", "bin/su"), file("lower/.wh.gone", ""), dir("fresh"), file("fresh/.wh..wh..opq", ""),
		file(".wh.back", ""), dir("back"), dir("twice"), file("twice/.wh.x", ""), file(".wh.twice", ""),
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}))
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(filepath.Join(target, name), &st); err != nil {
			t.Fatal(name, err)
		}
		return st
	}
	xattr := func(name, attr string) string {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(target, name), attr, buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
	if st := stat("bin/su"); st.Mode&0o7777 != 0o4755 || st.Gid != 42 || st.Nlink != 2 || st.Mtim.Sec != at.Unix() {
		t.Errorf("su: %+v", st)
	}
	if got := xattr("bin/ping", "security.capability"); got != capability || stat("bin/ping").Uid != 7 {
		t.Errorf("capability %q", got)
	}
	if got := xattr("bin/ping", "trusted.overlay.redirect"); got != "no data available" {
		t.Errorf("the image steers overlayfs: %q", got)
	}
	if st := stat("home/web"); st.Mode&0o7777 != 0o1750 || st.Uid != 1001 || st.Gid != 1002 || st.Mtim.Sec != at.Unix() {
		t.Errorf("home: %+v", st)
	}
	if st := stat("lower/gone"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: %+v", st)
	}
	for _, name := range []string{"fresh", "back", "twice"} {
		if got := xattr(name, "trusted.overlay.opaque"); got != "y" || stat(name).Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s is not opaque: %q", name, got)
		}
	}
	if to, err := os.Readlink(filepath.Join(target, "sh")); err != nil || to != "bin/su" {
		t.Errorf("link to %q, %v", to, err)
	}
	if stat("pipe").Mode&unix.S_IFMT != unix.S_IFIFO {
		t.Error("pipe is none")
	}
}

func TestUnpackLimits(t *testing.T) {
	many := make([]tar.Header, 0, 1001)
	for i := range 1001 {
		many = append(many, dir("d/"+strings.Repeat("x", i%200+1)))
	}
	if err := unpackBytes(t.TempDir(), makeTar(t, many...)); !errors.Is(err, errEntries) {
		t.Errorf("many entries: %v", err)
	}
	if err := unpackBytes(t.TempDir(), makeTar(t, file("big", string(make([]byte, 2<<20))))); !errors.Is(err, errTooBig) {
		t.Errorf("large: %v", err)
	}
	limits := Limits{}.withDefaults()
	zeros := &meter{r: zeroReader{}, limits: limits, packed: func() int64 { return 1000 }}
	buf := make([]byte, 1<<20)
	var err error
	for err == nil {
		_, err = zeros.Read(buf)
	}
	if !errors.Is(err, errBomb) || zeros.n > ratioFree+int64(len(buf)) {
		t.Errorf("bomb: %v after %d bytes", err, zeros.n)
	}
}

// sparseHeader declares a file of 1 TiB that is one hole, in old GNU format.
func sparseHeader() []byte {
	b := make([]byte, 512)
	copy(b, "hole")
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], "00000000000\x00")
	copy(b[136:], "00000000000\x00")
	b[156] = 'S'
	copy(b[257:], "ustar  \x00")
	size := append([]byte{0x80}, make([]byte, 11)...) // base 256
	size[6] = 1
	copy(b[386:], size)
	copy(b[398:], "00000000000\x00")
	copy(b[483:], size)
	for i := 148; i < 156; i++ {
		b[i] = ' '
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, make([]byte, 1024)...)
}

func TestUnpackSparseBomb(t *testing.T) {
	if err := unpackBytes(t.TempDir(), sparseHeader()); !errors.Is(err, errTooBig) {
		t.Errorf("sparse file: %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }

// FuzzUnpack: whatever a layer contains, nothing appears outside of its directory.
func FuzzUnpack(f *testing.F) {
	f.Add(makeTar(f, dir("a"), file("a/b", "c"), symlink("l", "../.."), file("l/x", "y"), hardlink("h", "a/b")))
	f.Add(makeTar(f, file("a/.wh..wh..opq", ""), file(".wh.a", "")))
	f.Add(makeTar(f, file("../x", "")))
	f.Add([]byte("not a tar"))
	f.Add(sparseHeader())
	f.Fuzz(func(t *testing.T, layer []byte) {
		base := t.TempDir()
		target := filepath.Join(base, "layer")
		if err := os.Mkdir(target, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpackBytes(target, layer)
		if err := os.Chmod(target, 0o755); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(base)
		if err != nil || len(left) != 1 {
			t.Fatalf("something came out of the layer: %v %v", left, err)
		}
	})
}
