// Package container runs the containers of pods on one machine.
//
// In: a sandbox per pod (network namespace, cgroup, host name) and, for each of
// its containers, a root filesystem as overlay layers, a command line and limits.
// Out: processes, their logs on disk, their exit codes, and exec. The package
// knows nothing of the Kubernetes API, of image references or of addresses.
//
// A sandbox is held by a shim process that outlives the caller, so that
// containers, logs and exit codes survive a crash or an upgrade of it: List tells
// a new caller everything that the old one knew.
package container

import (
	"context"
	"io"
	"syscall"
	"time"
)

// Runtime is what the worker needs of a container runtime. Implementations are
// safe for concurrent use. Every call may be repeated: making what exists and
// removing what is gone succeed.
type Runtime interface {
	// RunSandbox makes the sandbox cfg.ID, or finds it running.
	RunSandbox(ctx context.Context, cfg SandboxConfig) error
	// RemoveSandbox kills what still runs in the sandbox and removes every trace of
	// it: processes, mounts, cgroups and state. Log files are the caller's.
	RemoveSandbox(ctx context.Context, id string) error
	// List returns every sandbox with its containers, exited ones included.
	List(ctx context.Context) ([]SandboxStatus, error)

	// StartContainer makes the container and starts its process. When it returns
	// nil the process has been exec'd; a *StartError tells why it was not. A failed
	// start leaves an exited container behind in List.
	StartContainer(ctx context.Context, sandboxID string, cfg ContainerConfig) error
	// StopContainer sends the signal, waits for grace, then kills. It returns when
	// the process has ended. A zero grace kills at once.
	StopContainer(ctx context.Context, sandboxID, id string, signal syscall.Signal, grace time.Duration) error
	// RemoveContainer removes an exited container and its writable layer.
	RemoveContainer(ctx context.Context, sandboxID, id string) error
	// UpdateResources changes the limits of a running container.
	UpdateResources(ctx context.Context, sandboxID, id string, r Resources) error
	// Exec runs a command in a running container and returns its exit code. It
	// returns when the command has ended and its output is delivered.
	Exec(ctx context.Context, sandboxID, id string, e ExecConfig) (exitCode int, err error)
	// Attach connects to the standard files of a running container's first process,
	// beginning now. It returns when the container has ended and its output is
	// delivered, or when Stdin has ended and the container's stdin stays open for
	// others.
	Attach(ctx context.Context, sandboxID, id string, a AttachConfig) error
	// Status returns what is known of a container.
	Status(ctx context.Context, sandboxID, id string) (ContainerStatus, error)
	// WritableLayer is the directory that holds what the container has written to its
	// root filesystem, or "" when there is none any more.
	WritableLayer(ctx context.Context, sandboxID, id string) (string, error)
	// Stats returns what the container's cgroup counts now.
	Stats(ctx context.Context, sandboxID, id string) (Stats, error)

	// Events delivers one event for each container that ends and each sandbox that
	// is lost (its shim died). The channel is never closed; a slow reader loses
	// nothing. There is one reader.
	Events() <-chan Event
	// Close lets go of all sandboxes without stopping them.
	Close() error
}

// SandboxConfig describes the part of a pod that its containers share.
type SandboxConfig struct {
	// ID is unique on the machine: the pod's UID.
	ID string
	// Namespace and Name of the pod, for people who look at processes and files.
	Namespace, Name string
	// NetNS is the path of the pod's network namespace; empty means the caller's own.
	NetNS string
	// UserBase, unless it is 0, is the first of the UserCount users and groups of the
	// machine that are users and groups from 0 on in the sandbox, whose user namespace is
	// that to which NetNS belongs.
	UserBase uint32 `json:",omitempty"`
	// Hostname inside the sandbox; empty keeps the caller's UTS namespace.
	Hostname string
	// CgroupParent is the cgroup, relative to the cgroup root, under which the
	// sandbox's own cgroup is made; without it there are no cgroups, and no limits.
	CgroupParent string
	// Resources of the pod as a whole.
	Resources Resources
	// PIDNamespace of the containers.
	PIDNamespace PIDNamespace `json:",omitempty"`
	// HostIPC keeps the caller's IPC namespace and /dev/shm.
	HostIPC bool `json:",omitempty"`
	// Sysctls are kernel parameters of the sandbox's namespaces, by their dotted
	// names.
	Sysctls map[string]string `json:",omitempty"`
}

// UserCount is how many users and groups a user namespace has, as Kubernetes wants it.
const UserCount = 1 << 16

// PIDNamespace says which processes the containers of a sandbox see.
type PIDNamespace string

const (
	// PIDContainer: each container sees its own processes.
	PIDContainer PIDNamespace = ""
	// PIDPod: the containers of the sandbox see each other's.
	PIDPod PIDNamespace = "pod"
	// PIDHost: they see those of the machine.
	PIDHost PIDNamespace = "host"
)

// ContainerConfig describes one container.
type ContainerConfig struct {
	// ID is unique in its sandbox, e.g. "web-2" for the third start of "web".
	ID string
	// Layers are the read-only directories of the root filesystem, lowest first.
	Layers []string
	// Args is the command line; Args[0] is looked up in the container's PATH.
	Args []string
	// Env in the form NAME=value.
	Env []string
	// WorkingDir is made if it does not exist.
	WorkingDir string
	// User as "user", "uid", "user:group" or "uid:gid", resolved in the container's
	// own /etc/passwd and /etc/group. Empty means root.
	User string
	// SupplementalGroups are added to the process.
	SupplementalGroups []int64
	// StrictGroups leaves out those that the container's /etc/group gives the user.
	StrictGroups bool `json:",omitempty"`
	// Mounts beside the usual /proc, /dev and /sys.
	Mounts []Mount
	// Resources that bound the container.
	Resources Resources
	// LogPath is where stdout and stderr go, in the format of the CRI:
	// "<RFC3339Nano> stdout|stderr F|P <line>".
	LogPath string
	// LogMaxSize in bytes and LogMaxFiles are when the log is rotated and how many
	// files are kept; 10 MiB and 5 where they are 0.
	LogMaxSize  int64 `json:",omitempty"`
	LogMaxFiles int   `json:",omitempty"`
	// Stdin keeps stdin open for attach; else it is /dev/null.
	Stdin bool
	// StdinOnce closes stdin when the input of the first Attach ends.
	StdinOnce bool `json:",omitempty"`
	// TTY allocates a terminal.
	TTY bool
	// PIDTarget is a running container of the sandbox whose PID namespace this one
	// joins; empty means what the sandbox says.
	PIDTarget string `json:",omitempty"`
	// Security narrows or widens what the process may do.
	Security Security
}

// Security narrows or widens what a container's process may do.
type Security struct {
	Privileged             bool
	AddCapabilities        []string // without CAP_; "ALL"
	DropCapabilities       []string
	ReadOnlyRootFilesystem bool
	NoNewPrivileges        bool
	SeccompUnconfined      bool
	// UnmaskedProc shows all of /proc, and lets it be written to.
	UnmaskedProc bool `json:",omitempty"`
	// SeccompProfile, as JSON, takes the place of the default one.
	SeccompProfile []byte `json:",omitempty"`
}

// Mount is a bind mount of a host path.
type Mount struct {
	// Source on the host; a directory or a file.
	Source string
	// Target in the container; made if missing.
	Target string
	// ReadOnly mounts it so, recursively where the kernel can.
	ReadOnly bool
	// Propagation is "", "rslave" or "rshared".
	Propagation string
}

// Resources bound a container or a sandbox; zero values bound nothing.
type Resources struct {
	// CPUShares is the relative weight, 1024 for one CPU requested.
	CPUShares uint64
	// CPUQuota per CPUPeriod, both in microseconds.
	CPUQuota  int64
	CPUPeriod uint64
	// MemoryLimit in bytes.
	MemoryLimit int64
	// PidsLimit is the number of tasks.
	PidsLimit int64
	// OOMScoreAdj from -1000 to 1000; clamped to what the machine allows.
	OOMScoreAdj int
}

// State of a container.
type State string

const (
	// Running: its process runs.
	Running State = "running"
	// Exited: its process has ended, or never started.
	Exited State = "exited"
)

// SandboxStatus is one sandbox with its containers.
type SandboxStatus struct {
	Config     SandboxConfig
	CreatedAt  time.Time
	Containers []ContainerStatus
}

// ContainerStatus is what is known of one container.
type ContainerStatus struct {
	ID         string
	State      State
	Pid        int
	StartedAt  time.Time
	FinishedAt time.Time
	// ExitCode is 128+signal for a process that a signal ended.
	ExitCode int
	// OOMKilled says that the kernel killed a process of it for memory.
	OOMKilled bool
	// Error says why it did not start.
	Error string
	// User is who its first process began as; nil if it never did.
	User *User `json:",omitempty"`
}

// User is who a process runs as, in its own user namespace.
type User struct {
	UID, GID int64
	// Groups are all of them, in order.
	Groups []int64
}

// Event says that a container ended or that a sandbox was lost.
type Event struct {
	SandboxID string
	// Container is nil when the whole sandbox was lost.
	Container *ContainerStatus
}

// ExecConfig describes a command run in a container.
type ExecConfig struct {
	Args []string
	// Env is added to the container's own.
	Env []string
	TTY bool
	// Stdin, Stdout and Stderr may be nil. With TTY, Stderr is unused.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize delivers terminal sizes.
	Resize <-chan WindowSize
}

// AttachConfig connects to a container. Files may be nil. A terminal has no Stderr,
// and Resize is for terminals alone.
type AttachConfig struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan WindowSize
}

// WindowSize of a terminal in characters.
type WindowSize struct{ Width, Height uint16 }

// Stats of a container's cgroup.
type Stats struct {
	// CPU time used since the start.
	CPU time.Duration
	// MemoryWorkingSet in bytes: usage less inactive file cache.
	MemoryWorkingSet uint64
	Time             time.Time
}

// StartError says why a container did not start, in the words of Kubernetes.
type StartError struct {
	// Reason as kubectl prints it: "StartError", "ContainerCannotRun",
	// "CreateContainerError".
	Reason string
	// ExitCode as Kubernetes reports it: 127 not found, 126 not executable, 128 else.
	ExitCode int
	Err      error
}

func (e *StartError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }
