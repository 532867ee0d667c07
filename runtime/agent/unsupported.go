package agent

import (
	v1 "k8s.io/api/core/v1"
)

// unsupported names the fields that a pod sets and that this node does not act on,
// so that the pod's events say it.
func unsupported(pod *v1.Pod) []string {
	var out []string
	add := func(set bool, field string) {
		if set {
			out = append(out, field)
		}
	}
	spec := &pod.Spec
	add(spec.RuntimeClassName != nil && *spec.RuntimeClassName != "", "runtimeClassName")
	if sc := spec.SecurityContext; sc != nil {
		add(sc.SELinuxOptions != nil, "securityContext.seLinuxOptions")
	}
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			c, at := &list[i], list[i].Name+": "
			add(len(c.VolumeDevices) > 0, at+"volumeDevices")
			if sc := c.SecurityContext; sc != nil {
				add(sc.SELinuxOptions != nil, at+"securityContext.seLinuxOptions")
				add(sc.AppArmorProfile != nil && sc.AppArmorProfile.Type == v1.AppArmorProfileTypeLocalhost, at+"securityContext.appArmorProfile of type Localhost")
			}
		}
	}
	return out
}
