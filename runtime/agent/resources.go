package agent

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"gitk8s.dev/gitk8s/runtime/container"
)

// qosClass follows "Pod Quality of Service Classes" in the Kubernetes
// documentation: only CPU and memory count, init containers included.
func qosClass(pod *v1.Pod) v1.PodQOSClass {
	any, guaranteed := false, true
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			r := &list[i].Resources
			for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
				req, limit := r.Requests[name], r.Limits[name]
				if !req.IsZero() || !limit.IsZero() {
					any = true
				}
				if limit.IsZero() || !req.IsZero() && req.Cmp(limit) != 0 {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case !any:
		return v1.PodQOSBestEffort
	case guaranteed:
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

const (
	cpuPeriod = 100_000
	minShares = 2
	minQuota  = 1000
	// defaultPids bounds a container's tasks, so that a fork bomb stays its own.
	defaultPids = 4096
)

func cpuShares(q *resource.Quantity) uint64 {
	return max(uint64(q.MilliValue())*1024/1000, minShares)
}

func cpuQuota(q *resource.Quantity) int64 {
	if q.IsZero() {
		return 0
	}
	return max(q.MilliValue()*cpuPeriod/1000, minQuota)
}

// containerResources bounds one container.
func containerResources(pod *v1.Pod, spec *v1.Container, nodeMemory int64) container.Resources {
	req, limit := spec.Resources.Requests, spec.Resources.Limits
	cpu := req.Cpu()
	if cpu.IsZero() {
		cpu = limit.Cpu()
	}
	r := container.Resources{
		CPUShares:   cpuShares(cpu),
		CPUQuota:    cpuQuota(limit.Cpu()),
		MemoryLimit: limit.Memory().Value(),
		PidsLimit:   defaultPids,
		OOMScoreAdj: oomScoreAdj(qosClass(pod), req.Memory().Value(), nodeMemory),
	}
	if r.CPUQuota > 0 {
		r.CPUPeriod = cpuPeriod
	}
	return r
}

// oomScoreAdj follows "Node out of memory behavior" in the Kubernetes
// documentation.
func oomScoreAdj(qos v1.PodQOSClass, memoryRequest, nodeMemory int64) int {
	switch qos {
	case v1.PodQOSGuaranteed:
		return -997
	case v1.PodQOSBestEffort:
		return 1000
	}
	if nodeMemory <= 0 {
		return 999
	}
	adj := 1000 - 1000*memoryRequest/nodeMemory
	return int(min(max(adj, 3), 999))
}

// podResources bounds the pod as a whole: the sum of its containers, or the
// largest init container if that needs more. A limit applies only when every
// container has one.
func podResources(pod *v1.Pod) container.Resources {
	var cpuReq, cpuLimit, memLimit int64
	cpuBound, memBound := true, true
	for _, c := range pod.Spec.Containers {
		cpuReq += c.Resources.Requests.Cpu().MilliValue()
		cpuLimit += c.Resources.Limits.Cpu().MilliValue()
		memLimit += c.Resources.Limits.Memory().Value()
		cpuBound = cpuBound && !c.Resources.Limits.Cpu().IsZero()
		memBound = memBound && !c.Resources.Limits.Memory().IsZero()
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil {
			cpuReq += c.Resources.Requests.Cpu().MilliValue()
			cpuLimit += c.Resources.Limits.Cpu().MilliValue()
			memLimit += c.Resources.Limits.Memory().Value()
		} else {
			cpuReq = max(cpuReq, c.Resources.Requests.Cpu().MilliValue())
			cpuLimit = max(cpuLimit, c.Resources.Limits.Cpu().MilliValue())
			memLimit = max(memLimit, c.Resources.Limits.Memory().Value())
		}
		cpuBound = cpuBound && !c.Resources.Limits.Cpu().IsZero()
		memBound = memBound && !c.Resources.Limits.Memory().IsZero()
	}
	r := container.Resources{CPUShares: cpuShares(resource.NewMilliQuantity(cpuReq, resource.DecimalSI))}
	if cpuBound {
		r.CPUQuota = cpuQuota(resource.NewMilliQuantity(cpuLimit, resource.DecimalSI))
		r.CPUPeriod = cpuPeriod
	}
	if memBound {
		r.MemoryLimit = memLimit
	}
	return r
}

// runAs merges the user of image, pod and container, and refuses root where
// runAsNonRoot is set.
func runAs(pod *v1.Pod, spec *v1.Container, imageUser string) (string, error) {
	var uid, gid *int64
	var nonRoot *bool
	if sc := pod.Spec.SecurityContext; sc != nil {
		uid, gid, nonRoot = sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot
	}
	if sc := spec.SecurityContext; sc != nil {
		if sc.RunAsUser != nil {
			uid = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			gid = sc.RunAsGroup
		}
		if sc.RunAsNonRoot != nil {
			nonRoot = sc.RunAsNonRoot
		}
	}
	user, group, _ := strings.Cut(imageUser, ":")
	if uid != nil {
		// The image's group belongs to the image's user.
		user, group = strconv.FormatInt(*uid, 10), ""
	}
	if gid != nil {
		group = strconv.FormatInt(*gid, 10)
	}
	if isTrue(nonRoot) {
		n, err := strconv.ParseInt(user, 10, 64)
		switch {
		case uid != nil && *uid == 0:
			return "", fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", podText(pod), spec.Name)
		case user == "" || err == nil && n == 0:
			return "", fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", podText(pod), spec.Name)
		case err != nil:
			return "", fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", user, podText(pod), spec.Name)
		}
	}
	if group == "" {
		return user, nil
	}
	if user == "" {
		user = "0"
	}
	return user + ":" + group, nil
}

func supplementalGroups(pod *v1.Pod) []int64 {
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	groups := slices.Clone(sc.SupplementalGroups)
	if sc.FSGroup != nil && !slices.Contains(groups, *sc.FSGroup) {
		groups = append(groups, *sc.FSGroup)
	}
	return groups
}

// strictGroups says that the groups of the image's /etc/group don't count (KEP-3619).
func strictGroups(pod *v1.Pod) bool {
	sc := pod.Spec.SecurityContext
	return sc != nil && sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict
}

// security translates a container's security context.
func security(pod *v1.Pod, spec *v1.Container) container.Security {
	var out container.Security
	sc := spec.SecurityContext
	if sc != nil {
		out.Privileged = isTrue(sc.Privileged)
		out.ReadOnlyRootFilesystem = isTrue(sc.ReadOnlyRootFilesystem)
		out.UnmaskedProc = sc.ProcMount != nil && *sc.ProcMount == v1.UnmaskedProcMount
		out.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		if sc.Capabilities != nil {
			out.AddCapabilities = capabilities(sc.Capabilities.Add)
			out.DropCapabilities = capabilities(sc.Capabilities.Drop)
		}
	}
	profile := seccompProfile(pod, spec)
	// Without a profile the runtime's default applies: stricter than upstream's
	// Unconfined, as with its SeccompDefault (KEP-2413).
	out.SeccompUnconfined = out.Privileged || profile != nil && profile.Type == v1.SeccompProfileTypeUnconfined
	return out
}

func capabilities(list []v1.Capability) []string {
	out := make([]string, 0, len(list))
	for _, c := range list {
		out = append(out, strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
	}
	return out
}
