package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/container"
)

// startRequest is everything that a start needs of the pod's state.
type startRequest struct {
	pod     *v1.Pod
	spec    *v1.Container
	kind    ctrKind
	attempt int
	ips     []netip.Addr
	// crashed: this start follows a back-off.
	crashed bool
	// target is the container whose processes this one is to see, or "", and
	// targetID its present run.
	target, targetID string
}

// startResult is what came of it.
type startResult struct {
	id      string
	attempt int
	image   string
	imageID string
	user    *container.User
	// created: the runtime was asked to start it, so that the attempt counts.
	created bool
	// reason of err as a waiting container shows it, when not created.
	reason string
	err    error
}

func (r startResult) fail(reason string, err error) startResult {
	r.reason, r.err = reason, err
	return r
}

// startContainer pulls the image, computes the container's configuration and
// starts it.
func (w *worker) startContainer(ctx context.Context, req startRequest) startResult {
	res := startResult{id: instanceID(req.spec.Name, req.attempt), attempt: req.attempt}
	img, reason, err := w.pullImage(ctx, req)
	if err != nil {
		return res.fail(reason, err)
	}
	res.image = req.spec.Image
	res.imageID = img.Repository + "@" + img.Digest
	w.a.rememberSignal(req.spec.Image, img.Config.StopSignal)

	cfg, err := w.containerConfig(ctx, req, img)
	if err == nil && req.target != "" && req.targetID == "" {
		err = fmt.Errorf("unable to find target container %s", req.target)
	}
	if err != nil {
		if ctx.Err() == nil {
			w.event(v1.EventTypeWarning, "Failed", "Error: "+err.Error(), req.spec.Name)
		}
		if errors.As(err, new(createError)) {
			return res.fail(reasonCreateError, err)
		}
		return res.fail(reasonConfigError, err)
	}
	err = w.a.cfg.Runtime.StartContainer(ctx, w.uid, cfg)
	if err != nil && ctx.Err() == nil {
		defer w.event(v1.EventTypeWarning, "Failed", "Error: "+err.Error(), req.spec.Name)
	}
	if neverCreated(err) {
		// What the runtime keeps of it must not be taken for a run.
		w.removeInstance(req.pod, req.spec.Name, res.id)
		return res.fail(reasonCreateError, err)
	}
	res.created = true
	w.event(v1.EventTypeNormal, "Created", "Created container: "+req.spec.Name, req.spec.Name)
	if err != nil {
		return res.fail("", err)
	}
	if st, err := w.a.cfg.Runtime.Status(ctx, w.uid, res.id); err == nil {
		res.user = st.User
	}
	w.event(v1.EventTypeNormal, "Started", "Started container "+req.spec.Name, req.spec.Name)
	return res
}

// neverCreated says that a start failed before there was a container.
func neverCreated(err error) bool {
	var se *container.StartError
	return errors.As(err, &se) && se.Reason == reasonCreateError
}

// containerConfig computes what the runtime needs and makes the files that it
// mounts.
func (w *worker) containerConfig(ctx context.Context, req startRequest, img *registry.Image) (container.ContainerConfig, error) {
	var none container.ContainerConfig
	pod, spec := req.pod, req.spec
	env, err := w.environment(ctx, req)
	if err != nil {
		return none, err
	}
	args, err := commandLine(spec, env, img.Config)
	if err != nil {
		return none, err
	}
	user, err := runAs(pod, spec, img.Config.User)
	if err != nil {
		return none, err
	}
	mounts, err := w.mounts(req, env)
	if err != nil {
		return none, err
	}
	logPath := w.a.logPath(pod, spec.Name, req.attempt)
	if err := os.MkdirAll(filepath.Dir(logPath), 0o755); err != nil {
		return none, fmt.Errorf("make log directory: %w", err)
	}
	sec := security(pod, spec)
	if sec.SeccompProfile, err = w.a.localProfile(seccompProfile(pod, spec)); err != nil {
		return none, err
	}
	dir := spec.WorkingDir
	if dir == "" {
		dir = img.Config.WorkingDir
	}
	if dir == "" {
		dir = "/"
	}
	alloc := w.a.allocatable()
	return container.ContainerConfig{
		ID:                 instanceID(spec.Name, req.attempt),
		Layers:             img.Layers,
		Args:               args,
		Env:                env.list(img.Config.Env),
		WorkingDir:         dir,
		User:               user,
		SupplementalGroups: supplementalGroups(pod),
		StrictGroups:       strictGroups(pod),
		Mounts:             mounts,
		Resources:          containerResources(pod, spec, alloc.Memory().Value()),
		LogPath:            logPath,
		LogMaxSize:         w.a.cfg.ContainerLogMaxSize,
		LogMaxFiles:        w.a.cfg.ContainerLogMaxFiles,
		Stdin:              spec.Stdin,
		StdinOnce:          spec.StdinOnce,
		PIDTarget:          req.targetID,
		TTY:                spec.TTY,
		Security:           sec,
	}, nil
}

// mounts lists a container's bind mounts: its volumes, the files that every
// container of the pod shares, and the termination message.
func (w *worker) mounts(req startRequest, env environ) ([]container.Mount, error) {
	pod, spec := req.pod, req.spec
	var out []container.Mount
	taken := map[string]bool{}
	for i, m := range spec.VolumeMounts {
		source, err := w.a.volumes.Path(pod, m.Name)
		if err != nil {
			return nil, err
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			var ok bool
			if sub, ok = expandStrict(m.SubPathExpr, env); !ok {
				return nil, fmt.Errorf("volumeMount %s: subPathExpr %q names a variable that is not set", m.MountPath, m.SubPathExpr)
			}
		}
		if sub != "" {
			if source, err = w.a.volumes.SubPath(w.uid, spec.Name, i, source, sub); err != nil {
				return nil, fmt.Errorf("volumeMount %s: %w", m.MountPath, err)
			}
		}
		mount := container.Mount{Source: source, Target: absolute(m.MountPath), ReadOnly: m.ReadOnly || readOnlyVolume(pod, m.Name)}
		if m.MountPropagation != nil {
			switch *m.MountPropagation {
			case v1.MountPropagationHostToContainer:
				mount.Propagation = "rslave"
			case v1.MountPropagationBidirectional:
				mount.Propagation = "rshared"
			}
		}
		taken[mount.Target] = true
		out = append(out, mount)
	}
	shared, err := w.sharedFiles(pod, req.ips)
	if err != nil {
		return nil, err
	}
	for _, m := range shared {
		if !taken[m.Target] {
			out = append(out, m)
		}
	}
	message := w.a.messagePath(w.uid, spec.Name, req.attempt)
	if err := os.MkdirAll(filepath.Dir(message), 0o755); err != nil {
		return nil, fmt.Errorf("make container directory: %w", err)
	}
	if err := os.WriteFile(message, nil, 0o600); err != nil {
		return nil, fmt.Errorf("make termination message file: %w", err)
	}
	if err := os.Chmod(message, 0o666); err != nil {
		return nil, fmt.Errorf("make termination message file: %w", err)
	}
	path := spec.TerminationMessagePath
	if path == "" {
		path = v1.TerminationMessagePathDefault
	}
	return append(out, container.Mount{Source: message, Target: absolute(path)}), nil
}

func absolute(p string) string {
	if strings.HasPrefix(p, "/") {
		return filepath.Clean(p)
	}
	return filepath.Clean("/" + p)
}

// readOnlyVolume says whether a volume's files belong to the node, which replaces
// them, or the pod wants its claim's not to be written.
func readOnlyVolume(pod *v1.Pod, name string) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Name == name {
			return (v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly) || v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
		}
	}
	return false
}

// commandLine merges the image's and the container's command, with $(VAR)
// expanded: command replaces entrypoint and cmd, args replaces cmd alone.
func commandLine(spec *v1.Container, env environ, img imageConfig) ([]string, error) {
	command := expandAll(spec.Command, env)
	args := expandAll(spec.Args, env)
	switch {
	case len(command) > 0:
	case len(args) > 0:
		command = img.Entrypoint
	default:
		command, args = img.Entrypoint, img.Cmd
	}
	line := append(append([]string(nil), command...), args...)
	if len(line) == 0 {
		return nil, errors.New("no command specified: the image has neither entrypoint nor cmd; set command")
	}
	return line, nil
}
