package validation

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// containers checks the containers of a Pod together: names are unique among them,
// and so are host ports.
func containers(spec *corev1.PodSpec, volumes sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names, hostPorts := unique{}, unique{}
	if len(spec.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	for i := range spec.Containers {
		c, p := &spec.Containers[i], path.Child("containers").Index(i)
		errs = append(errs, container(c, volumes, p)...)
		errs = append(errs, named(names, c.Name, p)...)
		errs = append(errs, conflicts(hostPorts, c.Ports, p.Child("ports"))...)
		errs = append(errs, containerRestart(c, p)...)
		errs = append(errs, probes(c, p)...)
	}
	for i := range spec.InitContainers {
		c, p := &spec.InitContainers[i], path.Child("initContainers").Index(i)
		errs = append(errs, container(c, volumes, p)...)
		errs = append(errs, named(names, c.Name, p)...)
		errs = append(errs, containerRestart(c, p)...)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			errs = append(errs, probes(c, p)...)
			errs = append(errs, conflicts(hostPorts, c.Ports, p.Child("ports"))...)
			continue
		}
		errs = append(errs, noneOfInit(c, p)...)
	}
	return errs
}

// The most rules of a container, and the most exit codes of a rule.
const (
	maxRestartRules = 20
	maxRestartCodes = 255
)

// containerRestart checks a container's own restart policy and its rules (KEP-5307).
func containerRestart(c *corev1.Container, path *field.Path) field.ErrorList {
	p := path.Child("restartPolicy")
	if c.RestartPolicy == nil {
		if len(c.RestartPolicyRules) > 0 {
			return field.ErrorList{field.Required(p, "must specify restartPolicy when restart rules are used")}
		}
		return nil
	}
	errs := oneOf(p, *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	rules := path.Child("restartPolicyRules")
	if n := len(c.RestartPolicyRules); n > maxRestartRules {
		errs = append(errs, field.TooMany(rules, n, maxRestartRules))
	}
	for i, r := range c.RestartPolicyRules {
		p := rules.Index(i)
		if r.Action != corev1.ContainerRestartRuleActionRestart {
			errs = append(errs, field.NotSupported(p.Child("action"), r.Action, []corev1.ContainerRestartRuleAction{corev1.ContainerRestartRuleActionRestart}))
		}
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(p.Child("exitCodes"), "must be specified"))
			continue
		}
		if op := r.ExitCodes.Operator; op != corev1.ContainerRestartRuleOnExitCodesOpIn && op != corev1.ContainerRestartRuleOnExitCodesOpNotIn {
			errs = append(errs, field.NotSupported(p.Child("exitCodes", "operator"), op,
				[]corev1.ContainerRestartRuleOnExitCodesOperator{corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn}))
		}
		if n := len(r.ExitCodes.Values); n > maxRestartCodes {
			errs = append(errs, field.TooMany(p.Child("exitCodes", "values"), n, maxRestartCodes))
		}
	}
	return errs
}

func named(seen unique, name string, p *field.Path) field.ErrorList {
	if name == "" {
		return nil
	}
	return seen.check(p.Child("name"), name)
}

// noneOfInit refuses what an init container that ends has no use for.
func noneOfInit(c *corev1.Container, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	const message = "may not be set for init containers without restartPolicy=Always"
	if c.Lifecycle != nil {
		errs = append(errs, field.Forbidden(p.Child("lifecycle"), message))
	}
	if c.LivenessProbe != nil {
		errs = append(errs, field.Forbidden(p.Child("livenessProbe"), message))
	}
	if c.ReadinessProbe != nil {
		errs = append(errs, field.Forbidden(p.Child("readinessProbe"), message))
	}
	if c.StartupProbe != nil {
		errs = append(errs, field.Forbidden(p.Child("startupProbe"), message))
	}
	return errs
}

func conflicts(seen unique, ports []corev1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, p := range ports {
		if p.HostPort != 0 {
			errs = append(errs, seen.check(path.Index(i).Child("hostPort"), fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort))...)
		}
	}
	return errs
}

func container(c *corev1.Container, volumes sets.Set[string], path *field.Path) field.ErrorList {
	errs := requiredLabel(path.Child("name"), c.Name)
	errs = append(errs, image(path.Child("image"), c.Image)...)
	errs = append(errs, oneOf(path.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, oneOf(path.Child("terminationMessagePolicy"), c.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, ports(c.Ports, path.Child("ports"))...)
	errs = append(errs, env(c.Env, path.Child("env"))...)
	errs = append(errs, envFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, mounts(c.VolumeMounts, volumes, path.Child("volumeMounts"))...)
	errs = append(errs, resources(&c.Resources, path.Child("resources"))...)
	if c.Lifecycle != nil {
		if h := c.Lifecycle.PostStart; h != nil {
			errs = append(errs, lifecycle(h, path.Child("lifecycle", "postStart"))...)
		}
		if h := c.Lifecycle.PreStop; h != nil {
			errs = append(errs, lifecycle(h, path.Child("lifecycle", "preStop"))...)
		}
	}
	if s := c.SecurityContext; s != nil {
		errs = append(errs, userID(path.Child("securityContext", "runAsUser"), s.RunAsUser)...)
		errs = append(errs, userID(path.Child("securityContext", "runAsGroup"), s.RunAsGroup)...)
		errs = append(errs, seccomp(s.SeccompProfile, path.Child("securityContext", "seccompProfile"))...)
		if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation && s.Privileged != nil && *s.Privileged {
			errs = append(errs, field.Invalid(path.Child("securityContext"), "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
	}
	return errs
}

func image(p *field.Path, ref string) field.ErrorList {
	switch {
	case ref == "":
		return field.ErrorList{field.Required(p, "")}
	case ref != strings.TrimSpace(ref):
		return field.ErrorList{field.Invalid(p, ref, "must not have leading or trailing whitespace")}
	}
	return nil
}

func ports(list []corev1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := unique{}
	for i, port := range list {
		p := path.Index(i)
		if port.Name != "" {
			if bad := check(p.Child("name"), port.Name, utilvalidation.IsValidPortName); len(bad) > 0 {
				errs = append(errs, bad...)
			} else {
				errs = append(errs, names.check(p.Child("name"), port.Name)...)
			}
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(p.Child("containerPort"), ""))
		} else {
			errs = append(errs, portNumber(p.Child("containerPort"), port.ContainerPort)...)
		}
		if port.HostPort != 0 {
			errs = append(errs, portNumber(p.Child("hostPort"), port.HostPort)...)
		}
		errs = append(errs, oneOf(p.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	return errs
}

func env(list []corev1.EnvVar, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		e, p := &list[i], path.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else {
			errs = append(errs, check(p.Child("name"), e.Name, utilvalidation.IsRelaxedEnvVarName)...)
		}
		errs = append(errs, envSource(e, p.Child("valueFrom"))...)
	}
	return errs
}

func envSource(e *corev1.EnvVar, p *field.Path) field.ErrorList {
	v := e.ValueFrom
	if v == nil {
		return nil
	}
	var errs field.ErrorList
	count := 0
	if f := v.FieldRef; f != nil {
		count++
		errs = append(errs, fieldRef(f, envFields, p.Child("fieldRef"))...)
	}
	if r := v.ResourceFieldRef; r != nil {
		count++
		errs = append(errs, resourceRef(r, false, p.Child("resourceFieldRef"))...)
	}
	if r := v.ConfigMapKeyRef; r != nil {
		count++
		errs = append(errs, key(p.Child("configMapKeyRef", "key"), r.Key)...)
	}
	if r := v.SecretKeyRef; r != nil {
		count++
		errs = append(errs, key(p.Child("secretKeyRef", "key"), r.Key)...)
	}
	switch {
	case e.Value != "":
		errs = append(errs, field.Invalid(p, "", "may not be specified when `value` is not empty"))
	case count == 0:
		errs = append(errs, field.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"))
	case count > 1:
		errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func key(p *field.Path, k string) field.ErrorList {
	if k == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return check(p, k, utilvalidation.IsConfigMapKey)
}

// The fields of a Pod that the Downward API offers ("Downward API" page).
var (
	envFields = []string{
		"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
	}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
)

func fieldRef(f *corev1.ObjectFieldSelector, supported []string, p *field.Path) field.ErrorList {
	if f.FieldPath == "" {
		return field.ErrorList{field.Required(p.Child("fieldPath"), "")}
	}
	if f.APIVersion != "v1" {
		return field.ErrorList{field.Invalid(p.Child("apiVersion"), f.APIVersion, "must be v1")}
	}
	base, sub, subscript := strings.Cut(strings.TrimSuffix(f.FieldPath, "']"), "['")
	if subscript && (base == "metadata.labels" || base == "metadata.annotations") {
		return check(p, sub, func(s string) []string { return utilvalidation.IsQualifiedName(strings.ToLower(s)) })
	}
	if !slices.Contains(supported, f.FieldPath) {
		return field.ErrorList{field.NotSupported(p.Child("fieldPath"), f.FieldPath, supported)}
	}
	return nil
}

var downwardResources = []string{
	"limits.cpu", "limits.ephemeral-storage", "limits.memory",
	"requests.cpu", "requests.ephemeral-storage", "requests.memory",
}

func resourceRef(r *corev1.ResourceFieldSelector, inVolume bool, p *field.Path) field.ErrorList {
	switch {
	case inVolume && r.ContainerName == "":
		return field.ErrorList{field.Required(p.Child("containerName"), "")}
	case r.Resource == "":
		return field.ErrorList{field.Required(p.Child("resource"), "")}
	case !slices.Contains(downwardResources, r.Resource) && !strings.Contains(r.Resource, ".hugepages-"):
		return field.ErrorList{field.NotSupported(p.Child("resource"), r.Resource, downwardResources)}
	}
	return nil
}

func envFrom(list []corev1.EnvFromSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, e := range list {
		p := path.Index(i)
		if e.Prefix != "" {
			errs = append(errs, check(p.Child("prefix"), e.Prefix, utilvalidation.IsRelaxedEnvVarName)...)
		}
		switch {
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
		case e.ConfigMapRef != nil:
			errs = append(errs, requiredSubdomain(p.Child("configMapRef", "name"), e.ConfigMapRef.Name)...)
		case e.SecretRef != nil:
			errs = append(errs, requiredSubdomain(p.Child("secretRef", "name"), e.SecretRef.Name)...)
		default:
			errs = append(errs, field.Invalid(p, "", "must specify one of: `configMapRef` or `secretRef`"))
		}
	}
	return errs
}

func mounts(list []corev1.VolumeMount, volumes sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]bool{}
	for i, m := range list {
		p := path.Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		} else if !volumes.Has(m.Name) {
			errs = append(errs, field.NotFound(p.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(p.Child("mountPath"), ""))
		}
		if seen[m.MountPath] {
			errs = append(errs, field.Invalid(p.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen[m.MountPath] = true
		if m.SubPath != "" {
			errs = append(errs, relativePath(p.Child("subPath"), m.SubPath)...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(p.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, relativePath(p.Child("subPathExpr"), m.SubPathExpr)...)
		}
	}
	return errs
}

func resources(r *corev1.ResourceRequirements, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range slices.Sorted(maps.Keys(r.Limits)) {
		errs = append(errs, quantityOf(name, r.Limits, path.Child("limits").Key(string(name)))...)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Requests)) {
		p := path.Child("requests").Key(string(name))
		errs = append(errs, quantityOf(name, r.Requests, p)...)
		request := r.Requests[name]
		limit, ok := r.Limits[name]
		switch {
		case ok && request.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(path.Child("requests"), request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !ok && isExtended(name):
			errs = append(errs, field.Required(path.Child("limits"), "Limit must be set for non overcommitable resources"))
		}
	}
	return errs
}

func isExtended(name corev1.ResourceName) bool {
	return strings.Contains(string(name), "/") && !strings.Contains(string(name), "kubernetes.io/")
}

func quantityOf(name corev1.ResourceName, list corev1.ResourceList, p *field.Path) field.ErrorList {
	errs := check(p, string(name), utilvalidation.IsQualifiedName)
	known := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	if !strings.Contains(string(name), "/") && !slices.Contains(known, name) && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
		errs = append(errs, field.Invalid(p, string(name), "must be a standard resource type or fully qualified"))
	}
	q := list[name]
	if q.Sign() < 0 {
		errs = append(errs, field.Invalid(p, q.String(), "must be greater than or equal to 0"))
	}
	if isExtended(name) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(p, q.String(), "must be an integer"))
	}
	return errs
}
