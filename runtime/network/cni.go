package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// pluginTimeout bounds what the plugins do for one pod.
const pluginTimeout = 2 * time.Minute

// CNIConfig of a node whose pods' network plugins make.
type CNIConfig struct {
	// Dir keeps records, the pods' namespaces and the plugins' results.
	Dir string
	// NetNS is the path of the node's namespace; empty means the caller's own.
	NetNS string
	// Services are the ranges of the services' addresses, NodeIPs the sources, of the same
	// families, of what the node itself sends to them.
	Services []netip.Prefix
	NodeIPs  []netip.Addr
	// ConfDir has the network configurations; the first one by name is used, as
	// containerd and CRI-O do.
	ConfDir string
	// BinDirs have the plugins.
	BinDirs []string
}

// CNI connects the pods of one node by plugins of the Container Network Interface
// (https://www.cni.dev/docs/spec/). Methods may be called at the same time; those for
// one pod wait for each other.
type CNI struct {
	cfg CNIConfig
	lib *libcni.CNIConfig

	mu   sync.Mutex
	pods map[string]*cniPod
}

// PortMapping is a host port of a pod, as the plugins' capability portMappings has it.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// cniPod is a pod with its lock. The record is its file's content; the zero value
// stands for none.
type cniPod struct {
	mu     sync.Mutex
	record cniRecord
	ports  []PortMapping // for when it is connected
}

// cniRecord has all that is needed to disconnect a pod, and is written before it is
// connected.
type cniRecord struct {
	UID             string
	Namespace, Name string
	NetNS           string
	// IP is not valid before the pod has been connected.
	IP      netip.Addr
	Ports   []PortMapping `json:",omitempty"`
	Config  json.RawMessage
	BinDirs []string
}

// OpenCNI prepares the node as NewPodNetwork does, and reads the records.
func OpenCNI(cfg CNIConfig) (*CNI, error) {
	c, err := openCNI(cfg)
	if err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	if err := prepareForwarding(cfg.NetNS, hasIPv6(cfg.Services)); err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	h, err := handle(cfg.NetNS, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	defer h.Close()
	if err := routeServices(h, cfg.Services, cfg.NodeIPs); err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	return c, nil
}

func openCNI(cfg CNIConfig) (*CNI, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	c := &CNI{cfg: cfg, pods: map[string]*cniPod{}}
	c.lib = c.plugins(cfg.BinDirs)
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "*"+recordExt))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var r cniRecord
		if uid := strings.TrimSuffix(filepath.Base(f), recordExt); json.Unmarshal(b, &r) != nil || r.UID != uid {
			// A crash of the machine, which took the pod as well, made it unreadable.
			if err := errors.Join(deleteNetNS(filepath.Join(cfg.Dir, uid+pinExt)), os.Remove(f)); err != nil {
				return nil, err
			}
			continue
		}
		c.pods[r.UID] = &cniPod{record: r}
	}
	return c, nil
}

// plugins are those in directories, run in the node's namespace.
func (c *CNI) plugins(dirs []string) *libcni.CNIConfig {
	raw := &nodeExec{DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}, ns: c.cfg.NetNS}
	return libcni.NewCNIConfigWithCacheDir(dirs, filepath.Join(c.cfg.Dir, "cache"), raw)
}

// nodeExec starts plugins on a thread in the node's namespace.
type nodeExec struct {
	*invoke.DefaultExec
	ns string
}

// ExecPlugin implements invoke.Exec.
func (e *nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	err = inNetNS(e.ns, func() (err error) {
		out, err = e.DefaultExec.ExecPlugin(ctx, path, stdin, environ)
		return err
	})
	return out, err
}

// Ready says, in kubelet's words, what is missing for pods to be connected.
func (c *CNI) Ready(ctx context.Context) error {
	list, err := c.config()
	if err == nil {
		err = c.lib.GetStatusNetworkList(ctx, list)
	}
	if err != nil {
		return fmt.Errorf("NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: %w", err)
	}
	return nil
}

// config is the network's configuration as it is now.
func (c *CNI) config() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.cfg.ConfDir, []string{".conflist", ".conf", ".json"}) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("cni config: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("cni plugin not initialized: no network config found in %s", c.cfg.ConfDir)
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(files[0]) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(files[0])
	} else {
		var single *libcni.PluginConfig
		if single, err = libcni.ConfFromFile(files[0]); err == nil {
			list, err = libcni.ConfListFromConf(single)
		}
	}
	if err == nil && len(list.Plugins) == 0 {
		err = errors.New("it names no plugin")
	}
	if err != nil {
		return nil, fmt.Errorf("cni config %s: %w", files[0], err)
	}
	return list, nil
}

// pod returns a pod, locked.
func (c *CNI) pod(uid string) *cniPod {
	c.mu.Lock()
	p := c.pods[uid]
	if p == nil {
		p = &cniPod{}
		c.pods[uid] = p
	}
	c.mu.Unlock()
	p.mu.Lock()
	return p
}

// MapPorts says which host ports a pod is to get when it is connected.
func (c *CNI) MapPorts(uid string, ports []PortMapping) {
	p := c.pod(uid)
	defer p.mu.Unlock()
	p.ports = ports
}

// Setup connects a pod, or finds it connected, and returns its namespace and address.
// A plugin's own words are in the error.
func (c *CNI) Setup(ctx context.Context, uid, namespace, name string) (string, netip.Addr, error) {
	if !validUID(uid) {
		return "", netip.Addr{}, fmt.Errorf("connect pod %s/%s: bad uid %q", namespace, name, uid)
	}
	p := c.pod(uid)
	defer p.mu.Unlock()
	if c.isConnected(p.record) {
		return p.record.NetNS, p.record.IP, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	if err := c.connect(ctx, p, cniRecord{UID: uid, Namespace: namespace, Name: name}); err != nil {
		return "", netip.Addr{}, fmt.Errorf("connect pod %s/%s: %w", namespace, name, err)
	}
	return p.record.NetNS, p.record.IP, nil
}

// isConnected says whether the pod's link has its address.
func (c *CNI) isConnected(r cniRecord) bool {
	if !r.IP.IsValid() || !isNetNS(r.NetNS) {
		return false
	}
	err := inNetNS(r.NetNS, func() error {
		link, err := net.InterfaceByName(podLink)
		if err != nil {
			return err
		}
		addrs, err := link.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(r.IP.AsSlice()) {
				return nil
			}
		}
		return errors.Join(err, errors.New("no address"))
	})
	return err == nil
}

// connect makes everything anew.
func (c *CNI) connect(ctx context.Context, p *cniPod, r cniRecord) error {
	if p.record.UID != "" {
		// What never was connected must not wait for a plugin that could not do it.
		if err := c.disconnect(ctx, p); err != nil && p.record.IP.IsValid() {
			return err
		}
	}
	list, err := c.config()
	if err != nil {
		return err
	}
	for _, plugin := range list.Plugins {
		if _, err := invoke.FindInPath(plugin.Network.Type, c.cfg.BinDirs); err != nil {
			return fmt.Errorf("network %s: %w", list.Name, err)
		}
	}
	r.NetNS, r.Ports, r.Config, r.BinDirs = filepath.Join(c.cfg.Dir, r.UID+pinExt), p.ports, list.Bytes, c.cfg.BinDirs
	p.record = r
	if err := c.write(r); err != nil {
		return err
	}
	result, err := c.add(ctx, list, r)
	if err == nil {
		r.IP, err = addressOf(result)
	}
	if err != nil {
		// What a plugin has begun, it can end; else the next attempt tries that again.
		return errors.Join(err, c.disconnect(context.WithoutCancel(ctx), p))
	}
	p.record = r
	return c.write(r)
}

func (c *CNI) add(ctx context.Context, list *libcni.NetworkConfigList, r cniRecord) (types.Result, error) {
	if err := createNetNS(r.NetNS); err != nil {
		return nil, err
	}
	if err := inNetNS(r.NetNS, podSysctls); err != nil {
		return nil, err
	}
	return c.lib.AddNetworkList(ctx, list, runtimeConf(r))
}

func runtimeConf(r cniRecord) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: r.UID, NetNS: r.NetNS, IfName: podLink,
		// What plugins made for Kubernetes ask for, as containerd gives it to them.
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", r.Namespace}, {"K8S_POD_NAME", r.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", r.UID}, {"K8S_POD_UID", r.UID},
		},
	}
	if len(r.Ports) > 0 {
		rt.CapabilityArgs = map[string]any{"portMappings": r.Ports}
	}
	return rt
}

// addressOf is the pod's first IPv4 address in a result.
func addressOf(result types.Result) (netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the plugins' result: %w", err)
	}
	for _, a := range r.IPs {
		if a.Interface != nil && (*a.Interface < 0 || *a.Interface >= len(r.Interfaces) || r.Interfaces[*a.Interface].Sandbox == "") {
			continue // of the node's
		}
		if ip, ok := netip.AddrFromSlice(a.Address.IP.To4()); ok {
			return ip, nil
		}
	}
	return netip.Addr{}, errors.New("the plugins gave the pod no IPv4 address")
}

// Teardown disconnects a pod, as it was connected, whatever is configured now.
func (c *CNI) Teardown(ctx context.Context, uid string) error {
	p := c.pod(uid)
	defer p.mu.Unlock()
	if p.record.UID != "" {
		ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
		defer cancel()
		if err := c.disconnect(ctx, p); err != nil {
			return fmt.Errorf("disconnect pod %s/%s: %w", p.record.Namespace, p.record.Name, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, uid)
	return nil
}

// disconnect has the plugins undo what they did. The record goes last.
func (c *CNI) disconnect(ctx context.Context, p *cniPod) error {
	r := p.record
	list, err := libcni.NetworkConfFromBytes(r.Config)
	if err != nil {
		return fmt.Errorf("the configuration that pod %s was connected with: %w", r.UID, err)
	}
	rt := runtimeConf(r)
	if !isNetNS(r.NetNS) {
		rt.NetNS = "" // the machine was started anew: plugins free what is outside of it
	}
	if err := c.plugins(r.BinDirs).DelNetworkList(ctx, list, rt); err != nil {
		return err
	}
	if err := deleteNetNS(r.NetNS); err != nil {
		return err
	}
	if err := os.Remove(c.file(r.UID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p.record = cniRecord{}
	return nil
}

// uids are those of all pods that have been asked for.
func (c *CNI) uids() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]string, 0, len(c.pods))
	for uid := range c.pods {
		out = append(out, uid)
	}
	return out
}

// Collect has the plugins free what belongs to no pod on record. Nothing else may be
// connected meanwhile.
func (c *CNI) Collect(ctx context.Context) error {
	list, err := c.config()
	if err != nil {
		return err
	}
	var valid []types.GCAttachment
	for _, uid := range c.uids() {
		valid = append(valid, types.GCAttachment{ContainerID: uid, IfName: podLink})
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	if err := c.lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		return fmt.Errorf("free what belongs to no pod: %w", err)
	}
	return nil
}

// Check asks the plugins whether the pods that are connected are as they made them.
// What they say is for the log: a pod keeps what it has.
func (c *CNI) Check(ctx context.Context) error {
	var errs []error
	for _, uid := range c.uids() {
		p := c.pod(uid)
		if r := p.record; c.isConnected(r) {
			if err := c.check(ctx, r); err != nil {
				errs = append(errs, fmt.Errorf("the network of pod %s/%s is not as it was made; delete the pod for a new one: %w", r.Namespace, r.Name, err))
			}
		}
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (c *CNI) check(ctx context.Context, r cniRecord) error {
	list, err := libcni.NetworkConfFromBytes(r.Config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	if err := c.plugins(r.BinDirs).CheckNetworkList(ctx, list, runtimeConf(r)); err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return err
	}
	return nil
}

func (c *CNI) file(uid string) string { return filepath.Join(c.cfg.Dir, uid+recordExt) }

func (c *CNI) write(r cniRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.file(r.UID)+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(c.file(r.UID)+".tmp", c.file(r.UID))
}

// HasRecords says whether pods are on record in the directory of a PodNetwork or a CNI.
func HasRecords(dir string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*"+recordExt))
	return err == nil && len(files) > 0
}

// DeleteCNIPods disconnects every pod on record in a CNI's directory without the node:
// for cleaning up after a process that was killed.
func DeleteCNIPods(ctx context.Context, dir string) error {
	if !HasRecords(dir) {
		return nil
	}
	c, err := openCNI(CNIConfig{Dir: dir})
	if err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	var errs []error
	for uid := range c.pods {
		if err := c.Teardown(ctx, uid); err != nil {
			errs = append(errs, fmt.Errorf("%w; without its plugin, delete %s and free by hand what it has", err, c.file(uid)))
		}
	}
	return errors.Join(errs...)
}
