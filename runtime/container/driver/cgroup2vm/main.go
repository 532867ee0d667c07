// Command cgroup2vm runs test programs on a machine with cgroup v2 alone: a
// virtual one under qemu, since the hierarchies of the machine at hand belong to
// whoever has mounted them.
//
// In: a kernel with the modules that it needs, the guest's first process
// (./guest), static programs, and a root file system with systemd if that is to run
// the machine. Out: what the programs print, and the exit code 0 if all of them have
// ended with it. The machine has neither disk nor network. It is fast with /dev/kvm
// and works without.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The guest's contract: modules and programs are in these folders of the first file
// system, with the root file system, if there is one, beside them, and the last line
// that it prints begins with verdict.
const (
	rootArchive = "root.tar"
	modulesDir  = "modules"
	programsDir = "programs"
	verdict     = "cgroup2vm: exit code "
)

func main() {
	kernel := flag.String("kernel", "", "kernel image")
	guest := flag.String("guest", "", "the guest's first process")
	modules := flag.String("modules", "", "kernel modules to load, in this order, separated by commas")
	root := flag.String("root", "", "root file system, a tar archive, whose systemd starts the programs")
	args := flag.String("args", "-test.v", "arguments of every test program, separated by spaces")
	accel := flag.String("accel", "tcg", "how qemu runs the machine's processor: tcg or kvm")
	timeout := flag.Duration("timeout", 20*time.Minute, "how long all may take")
	flag.Parse()
	if *kernel == "" || *guest == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: cgroup2vm -kernel FILE -guest FILE [-modules FILE,...] [-root FILE] PROGRAM...\n"+
			"programs whose names end in .test are run, the others lie beside them")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	var mods []string
	if *modules != "" {
		mods = strings.Split(*modules, ",")
	}
	if err := run(ctx, *accel, *kernel, content{*guest, *root, *args, mods, flag.Args()}); err != nil {
		fmt.Fprintln(os.Stderr, "cgroup2vm:", err)
		os.Exit(1)
	}
}

// content is what the machine's first file system has.
type content struct {
	guest, root, args string
	modules, programs []string
}

func run(ctx context.Context, accel, kernel string, c content) error {
	dir, err := os.MkdirTemp("", "cgroup2vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "initramfs")
	if err := writeImage(image, c); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "pc", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "3072",
		"-nodefaults", "-no-reboot", "-nic", "none", "-display", "none", "-serial", "stdio",
		"-kernel", kernel, "-initrd", image,
		"-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the machine: %w", err)
	}
	code := follow(out)
	if err := cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("the machine failed: %w", err), ctx.Err())
	}
	switch code {
	case "0":
		return nil
	case "":
		return errors.New("the machine ended without a verdict")
	}
	return fmt.Errorf("tests failed in the machine, exit code %s", code)
}

// follow prints what the machine does and returns its verdict.
func follow(console io.Reader) (code string) {
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		fmt.Print(line)
		if _, after, ok := strings.Cut(strings.TrimSpace(line), verdict); ok {
			code = after
		}
		if err != nil {
			return code
		}
	}
}

// writeImage writes the machine's first file system.
func writeImage(file string, c content) error {
	var b bytes.Buffer
	w := archive{w: &b}
	for _, d := range []string{"dev", modulesDir, programsDir} {
		w.dir(d)
	}
	w.file("args", 0o644, []byte(c.args))
	add := func(name, from string) error {
		content, err := os.ReadFile(from)
		if err == nil {
			w.file(name, 0o755, content)
		}
		return err
	}
	if err := add("init", c.guest); err != nil {
		return err
	}
	if c.root != "" {
		if err := add(rootArchive, c.root); err != nil {
			return err
		}
	}
	for i, m := range c.modules {
		// Numbered: the guest loads them in the order of their names.
		if err := add(fmt.Sprintf("%s/%02d-%s", modulesDir, i, filepath.Base(m)), m); err != nil {
			return err
		}
	}
	for _, p := range c.programs {
		if err := add(programsDir+"/"+filepath.Base(p), p); err != nil {
			return err
		}
	}
	w.end()
	return os.WriteFile(file, b.Bytes(), 0o600)
}

// archive writes the format "newc" of cpio, which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w     *bytes.Buffer
	inode int
}

const (
	typeDir  = 0o040000
	typeFile = 0o100000
)

func (a *archive) dir(name string)                            { a.entry(name, typeDir|0o755, nil) }
func (a *archive) file(name string, mode int, content []byte) { a.entry(name, typeFile|mode, content) }
func (a *archive) end()                                       { a.entry("TRAILER!!!", 0, nil) }

func (a *archive) entry(name string, mode int, content []byte) {
	a.inode++
	// Magic, inode, mode, uid, gid, links, mtime, size, four device numbers, length
	// of the name with its zero byte, checksum.
	fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.w.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.w.Len()%4 != 0 {
		a.w.WriteByte(0)
	}
}
