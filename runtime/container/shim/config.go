package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/cgroups"
	devicesconfig "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/container"
	"gitk8s.dev/gitk8s/runtime/container/internal/wire"
)

// ttyGroup is the group of terminals everywhere.
const ttyGroup = 5

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultCapabilities are those that containerd and CRI-O give a container.
var defaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
	"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// facts are what this machine allows, read once.
type facts struct {
	capabilities []string // those that the shim itself has, with CAP_
	oomScoreAdj  int      // lowest score that can be given
	recursiveRO  bool     // the kernel has mount_setattr
	unified      bool     // pure cgroup v2
	swap         bool     // cgroups count swap
	userNS       bool     // users and capabilities are those of a user namespace
	ids          idSpace
}

func readFacts() facts {
	f := facts{unified: cgroups.IsCgroup2UnifiedMode(), oomScoreAdj: -1000}
	have := effectiveCapabilities()
	for i, name := range capabilities.KnownCapabilities() {
		if have&(1<<i) != 0 {
			f.capabilities = append(f.capabilities, name)
		}
	}
	f.userNS, f.ids = userns.RunningInUserNS(), readIDSpace()
	if f.userNS || !slices.Contains(f.capabilities, "CAP_SYS_RESOURCE") {
		// Without it a score can be raised only.
		f.oomScoreAdj = 0
		if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
			f.oomScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	f.swap = f.unified || err == nil
	f.recursiveRO = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}) != unix.ENOSYS
	return f
}

func effectiveCapabilities() uint64 {
	file, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		if hex, ok := strings.CutPrefix(sc.Text(), "CapEff:"); ok {
			v, _ := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return v
		}
	}
	return 0
}

// paths are where the parts of one container lie, in the shim's mount namespace.
type paths struct {
	rootfs, exe, shm, mqueue string
	mounts                   []string
	pidNS                    pidNamespace
	users                    userNamespace
}

// paths adds to those of a container what it shares with the others.
func (s *shim) paths(at paths) paths {
	at.exe, at.shm, at.mqueue, at.users = exePath(s.dir), s.shmDir(), s.mqueueDir(), s.users
	return at
}

// exePath is the executable that PID 1 of the containers runs.
func exePath(dir string) string {
	own := filepath.Join(dir, wire.ExeFile)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return "/proc/self/exe"
}

// initPath is where the container sees it: in /dev, which is the container's own
// tmpfs, unless a volume takes that place.
func initPath(mounts []container.Mount) string {
	for _, m := range mounts {
		if path.Clean(m.Target) == "/dev" {
			return "/.gitk8s-init"
		}
	}
	return "/dev/.gitk8s-init"
}

func workingDir(cfg container.ContainerConfig) string {
	if cfg.WorkingDir == "" {
		return "/"
	}
	return cfg.WorkingDir
}

// environment adds what a program may rely on.
func environment(env []string, tty bool) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	out := slices.Clone(env)
	if !has("PATH") {
		out = append(out, defaultPath)
	}
	if tty && !has("TERM") {
		out = append(out, "TERM=xterm")
	}
	return out
}

// hasCgroups says whether the sandbox has a place for its cgroups, and so limits.
func hasCgroups(s container.SandboxConfig) bool { return s.CgroupParent != "" }

func cgroupPath(s container.SandboxConfig, elem ...string) string {
	return path.Join(append([]string{"/", s.CgroupParent, "pod" + s.ID}, elem...)...)
}

// buildConfig says in libcontainer's words what the container is.
func buildConfig(s container.SandboxConfig, c container.ContainerConfig, at paths, f facts) (*configs.Config, error) {
	caps := capabilitySet(c.Security, f.capabilities)
	oom := min(max(c.Resources.OOMScoreAdj, f.oomScoreAdj), 1000)
	config := &configs.Config{
		Rootfs:          at.rootfs,
		Readonlyfs:      c.Security.ReadOnlyRootFilesystem,
		Capabilities:    &configs.Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
		NoNewPrivileges: c.Security.NoNewPrivileges,
		OomScoreAdj:     &oom,
		Namespaces: configs.Namespaces{
			{Type: configs.NEWNS}, {Type: configs.NEWCGROUP},
		},
		// IPC and host name are the shim's own: shared by the containers of the pod.
	}
	if !at.pidNS.host {
		config.Namespaces.Add(configs.NEWPID, at.pidNS.path())
	}
	if s.NetNS != "" {
		config.Namespaces.Add(configs.NEWNET, s.NetNS)
	}
	at.users.join(config)
	deviceRules := []*devicesconfig.Rule{{Type: 'a', Major: devicesconfig.Wildcard, Minor: devicesconfig.Wildcard, Permissions: "rwm", Allow: c.Security.Privileged}}
	for _, d := range specconv.AllowedDevices {
		deviceRules = append(deviceRules, &d.Rule)
		if d.Path != "" {
			config.Devices = append(config.Devices, d)
		}
	}
	if c.Security.Privileged {
		if err := addHostDevices(config); err != nil {
			return nil, err
		}
	} else {
		config.MaskPaths, config.ReadonlyPaths = maskedPaths, readonlyPaths
		if c.Security.UnmaskedProc {
			config.MaskPaths, config.ReadonlyPaths = outsideProc(maskedPaths), outsideProc(readonlyPaths)
		}
	}
	resources := c.Resources
	resources.CPUQuota = 0 // see launch
	config.Cgroups = &cgroups.Cgroup{
		Path:      cgroupPath(s, c.ID),
		Resources: cgroupResources(resources, deviceRules, f),
	}
	config.Mounts, config.RootPropagation = mountList(c, at, f)
	if f.userNS {
		restrict(config, s, at, f.ids)
	}
	if !hasCgroups(s) {
		withoutCgroups(config, s, c)
	}
	if !c.Security.Privileged && !c.Security.SeccompUnconfined {
		var err error
		if config.Seccomp, err = seccompFilter(c.Security.SeccompProfile, caps); err != nil {
			return nil, err
		}
	}
	return config, nil
}

func outsideProc(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(p string) bool { return strings.HasPrefix(p, "/proc/") })
}

// seccompFilter is the filter of a profile, or of the default one, for a process
// with the capabilities.
func seccompFilter(profile []byte, caps []string) (*configs.Seccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	parsed, err := seccomp.GetDefaultProfile(spec)
	what := "default seccomp profile"
	if profile != nil {
		parsed, err = seccomp.LoadProfile(string(profile), spec)
		what = "seccomp profile"
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	filter, err := specconv.SetupSeccomp(parsed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return filter, nil
}

// addHostDevices gives a privileged container the machine's devices, without the
// terminals: those are its own.
func addHostDevices(config *configs.Config) error {
	known := map[string]bool{"/dev/console": true, "/dev/ptmx": true}
	for _, d := range config.Devices {
		known[d.Path] = true
	}
	return filepath.WalkDir("/dev", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if e.IsDir() {
			switch name {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.udev":
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if known[name] || unix.Lstat(name, &st) != nil {
			return nil
		}
		var kind devicesconfig.Type
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			kind = devicesconfig.CharDevice
		case unix.S_IFBLK:
			kind = devicesconfig.BlockDevice
		default:
			return nil
		}
		config.Devices = append(config.Devices, &devicesconfig.Device{
			Path: name, FileMode: os.FileMode(st.Mode & 0o777), Uid: st.Uid, Gid: st.Gid,
			Rule: devicesconfig.Rule{Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), Permissions: "rwm", Allow: true},
		})
		return nil
	})
}

// capabilitySet follows the Kubernetes rule: ALL in either list is taken first,
// then single names; what the machine itself lacks is left out.
func capabilitySet(sec container.Security, available []string) []string {
	set := map[string]bool{}
	all := func(names []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, "ALL") })
	}
	for _, c := range defaultCapabilities {
		set["CAP_"+c] = true
	}
	if all(sec.DropCapabilities) {
		set = map[string]bool{}
	}
	if sec.Privileged || all(sec.AddCapabilities) {
		for _, c := range available {
			set[c] = true
		}
	}
	full := func(name string) string { return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_") }
	if !sec.Privileged {
		for _, c := range sec.DropCapabilities {
			delete(set, full(c))
		}
		for _, c := range sec.AddCapabilities {
			set[full(c)] = true
		}
	}
	var out []string
	for _, c := range available {
		if set[c] {
			out = append(out, c)
		}
	}
	return out
}

func cgroupResources(r container.Resources, rules []*devicesconfig.Rule, f facts) *cgroups.Resources {
	out := &cgroups.Resources{
		Devices:   rules,
		Memory:    r.MemoryLimit,
		CpuQuota:  r.CPUQuota,
		CpuPeriod: r.CPUPeriod,
	}
	if r.MemoryLimit > 0 && f.swap {
		out.MemorySwap = r.MemoryLimit // no swap beside it
	}
	if r.CPUShares > 0 {
		if f.unified {
			out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CPUShares)
		} else {
			out.CpuShares = r.CPUShares
		}
	}
	if r.PidsLimit > 0 {
		out.PidsLimit = &r.PidsLimit
	}
	return out
}

// mountList is the usual file systems, the pod's volumes with parents before
// children, and PID 1 last.
func mountList(c container.ContainerConfig, at paths, f facts) ([]*configs.Mount, int) {
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	readonly := unix.MS_RDONLY
	if c.Security.Privileged {
		readonly = 0
	}
	usual := []*configs.Mount{
		{Destination: "/proc", Source: "proc", Device: "proc", Flags: safe},
		{Destination: "/dev", Source: "tmpfs", Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
		{Destination: "/dev/pts", Source: "devpts", Device: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=" + strconv.Itoa(ttyGroup)},
		{Destination: "/dev/mqueue", Source: "mqueue", Device: "mqueue", Flags: safe},
		{Destination: "/dev/shm", Source: at.shm, Device: "bind", Flags: unix.MS_BIND | unix.MS_REC},
		{Destination: "/sys", Source: "sysfs", Device: "sysfs", Flags: safe | readonly},
		{Destination: "/sys/fs/cgroup", Source: "cgroup", Device: "cgroup", Flags: safe | unix.MS_RELATIME | readonly},
	}
	if at.mqueue != "" {
		for _, m := range usual {
			if m.Device == "mqueue" {
				m.Source, m.Device, m.Flags = at.mqueue, "bind", unix.MS_BIND
			}
		}
	}
	taken := map[string]bool{}
	for _, m := range c.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	var out []*configs.Mount
	for _, m := range usual {
		if taken[m.Destination] || (taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") && m.Destination != "/dev/shm") || (taken["/sys"] && m.Destination == "/sys/fs/cgroup") {
			continue
		}
		out = append(out, m)
	}
	propagation := 0
	var volumes []*configs.Mount
	for i, m := range c.Mounts {
		v := &configs.Mount{Destination: path.Clean(m.Target), Source: at.mounts[i], Device: "bind", Flags: unix.MS_BIND | unix.MS_REC}
		if m.ReadOnly {
			v.Flags |= unix.MS_RDONLY
			if f.recursiveRO {
				v.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			}
		}
		switch m.Propagation {
		case "rslave":
			v.PropagationFlags = []int{unix.MS_SLAVE | unix.MS_REC}
			if propagation == 0 {
				propagation = unix.MS_SLAVE | unix.MS_REC
			}
		case "rshared":
			v.PropagationFlags = []int{unix.MS_SHARED | unix.MS_REC}
			propagation = unix.MS_SHARED | unix.MS_REC
		default:
			v.PropagationFlags = []int{unix.MS_PRIVATE | unix.MS_REC}
		}
		volumes = append(volumes, v)
	}
	sort.SliceStable(volumes, func(i, j int) bool {
		return strings.Count(volumes[i].Destination, "/") < strings.Count(volumes[j].Destination, "/")
	})
	out = append(out, volumes...)
	out = append(out, &configs.Mount{Destination: initPath(c.Mounts), Source: at.exe, Device: "bind", Flags: unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV})
	return out, propagation
}

// makeSandboxCgroup bounds the pod as a whole; without bounds the containers' own
// cgroups bring their parent with them.
func (s *shim) makeSandboxCgroup() error {
	r := s.cfg.Resources
	r.OOMScoreAdj = 0
	if r == (container.Resources{}) || !hasCgroups(s.cfg) {
		return nil
	}
	res := cgroupResources(r, nil, s.facts)
	res.SkipDevices = true
	m, err := manager.New(&cgroups.Cgroup{Path: cgroupPath(s.cfg), Resources: res})
	if err != nil {
		return fmt.Errorf("cgroup of the sandbox: %w", err)
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", cgroupPath(s.cfg), err)
	}
	if err := m.Set(res); err != nil {
		return fmt.Errorf("set limits of cgroup %s: %w", cgroupPath(s.cfg), err)
	}
	return nil
}

func (s *shim) applyQuota(p *proc) error {
	cfg := p.container.Config()
	cgroup := *cfg.Cgroups
	cgroup.Resources = cgroupResources(p.cfg.Resources, cgroup.Resources.Devices, s.facts)
	cfg.Cgroups = &cgroup
	if err := p.container.Set(cfg); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set CPU quota: %w", err)
	}
	return nil
}

// oomKilled must be asked before the cgroup is gone.
func (s *shim) oomKilled(p *proc) bool {
	if !hasCgroups(s.cfg) {
		return false
	}
	m, err := manager.New(&cgroups.Cgroup{Path: cgroupPath(s.cfg, p.cfg.ID), Resources: &cgroups.Resources{}})
	if err != nil {
		return false
	}
	n, err := m.OOMKillCount()
	return err == nil && n > 0
}
