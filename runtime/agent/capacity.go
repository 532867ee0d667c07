package agent

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-base/version"
)

// detectCapacity completes given by what the machine has.
func detectCapacity(given v1.ResourceList, dataDir string, maxPods int64) (v1.ResourceList, error) {
	out := given.DeepCopy()
	if out == nil {
		out = v1.ResourceList{}
	}
	if _, ok := out[v1.ResourceCPU]; !ok {
		out[v1.ResourceCPU] = *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
	}
	if _, ok := out[v1.ResourceMemory]; !ok {
		total, err := memInfo("MemTotal")
		if err != nil {
			return nil, fmt.Errorf("agent: detect memory: %w", err)
		}
		out[v1.ResourceMemory] = *resource.NewQuantity(total, resource.BinarySI)
	}
	if _, ok := out[v1.ResourceEphemeralStorage]; !ok {
		if err := os.MkdirAll(dataDir, 0o755); err != nil {
			return nil, fmt.Errorf("agent: make data directory: %w", err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dataDir, &st); err != nil {
			return nil, fmt.Errorf("agent: detect disk size of %s: %w", dataDir, err)
		}
		out[v1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(st.Blocks)*st.Bsize, resource.BinarySI)
	}
	if _, ok := out[v1.ResourcePods]; !ok {
		out[v1.ResourcePods] = *resource.NewQuantity(maxPods, resource.DecimalSI)
	}
	return out, nil
}

// ParseReserved reads what is kept from pods as kubelet's --system-reserved has it, such
// as "cpu=200m,memory=1Gi"; nothing of an empty text.
func ParseReserved(text string) (v1.ResourceList, error) {
	out := v1.ResourceList{}
	for item := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		name, value, ok := strings.Cut(strings.TrimSpace(item), "=")
		if !ok {
			return nil, fmt.Errorf("%q is not a resource and a quantity with = between them", item)
		}
		switch v1.ResourceName(name) {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		default:
			return nil, fmt.Errorf("cannot reserve %q resource", name)
		}
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return nil, fmt.Errorf("failed to parse quantity %q for %q resource: %w", value, name, err)
		}
		if q.Sign() < 0 {
			return nil, fmt.Errorf("resource quantity for %q cannot be negative: %v", name, value)
		}
		out[v1.ResourceName(name)] = q
	}
	return out, nil
}

// reserved is what pods cannot have of a node: what is kept for its system, and what hard
// eviction keeps free ("Reserve Compute Resources for System Daemons", Node Allocatable).
func reserved(capacity, system v1.ResourceList, thresholds []EvictionThreshold) v1.ResourceList {
	out := v1.ResourceList{}
	maps.Copy(out, system)
	for i := range thresholds {
		t := &thresholds[i]
		if t.Signal != "memory.available" && t.Signal != "nodefs.available" {
			continue
		}
		all, sum := capacity[t.resource()], out[t.resource()].DeepCopy()
		sum.Add(*t.limit(all.Value()))
		out[t.resource()] = sum
	}
	return out
}

// allocatable is capacity less what is reserved, never below zero.
func allocatable(capacity, reserved v1.ResourceList) v1.ResourceList {
	out := capacity.DeepCopy()
	for name, r := range reserved {
		q, ok := out[name]
		if !ok {
			continue
		}
		q.Sub(r)
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		out[name] = q
	}
	return out
}

// withExtended adds to a node's own resources those that an administrator has
// advertised on the Node, all of them for pods ("Advertise Extended Resources for a
// Node").
func withExtended(own, advertised v1.ResourceList) v1.ResourceList {
	out := own
	for name, q := range advertised {
		domain, _, qualified := strings.Cut(string(name), "/")
		if _, ours := own[name]; ours || !qualified || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
			continue
		}
		if len(out) == len(own) {
			out = maps.Clone(own)
		}
		out[name] = q
	}
	return out
}

// memInfo reads one line of /proc/meminfo, in bytes.
func memInfo(key string) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		if name != key {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/meminfo: %s: %w", key, err)
		}
		return kb << 10, nil
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", key)
}

// nodeInfo describes machine and software.
func nodeInfo() v1.NodeSystemInfo {
	info := v1.NodeSystemInfo{
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
		KubeletVersion:          version.Get().GitVersion,
		ContainerRuntimeVersion: "gitk8s://" + strings.TrimPrefix(version.Get().GitVersion, "v"),
		OSImage:                 osImage(),
		MachineID:               readLine("/etc/machine-id"),
		SystemUUID:              readLine("/sys/class/dmi/id/product_uuid"),
		BootID:                  readLine("/proc/sys/kernel/random/boot_id"),
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		info.KernelVersion = unix.ByteSliceToString(u.Release[:])
	}
	return info
}

func osImage() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return "Linux"
}

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}
