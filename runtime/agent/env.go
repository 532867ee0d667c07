package agent

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	imgv1 "github.com/google/go-containerregistry/pkg/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"gitk8s.dev/gitk8s/runtime/volume"
)

type imageConfig = imgv1.Config

// environ is a container's environment, in the order in which it was set.
type environ struct {
	names  []string
	values map[string]string
}

func newEnviron() environ { return environ{values: map[string]string{}} }

func (e *environ) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// list is the environment in the form NAME=value, with what the image sets and the
// pod does not.
func (e *environ) list(image []string) []string {
	var out []string
	for _, kv := range image {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := e.values[name]; !ok {
			out = append(out, kv)
		}
	}
	for _, name := range e.names {
		out = append(out, name+"="+e.values[name])
	}
	return out
}

// expand replaces $(NAME) by its value; $$ is a dollar sign, and a reference to
// what is not set stays as it is. See "Define Dependent Environment Variables" in
// the Kubernetes documentation.
func expand(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteString(s[i : i+2])
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

func expandAll(list []string, env environ) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, expand(s, func(n string) (string, bool) { v, ok := env.values[n]; return v, ok }))
	}
	return out
}

// expandStrict is expand that fails where a variable is not set.
func expandStrict(s string, env environ) (string, bool) {
	ok := true
	out := expand(s, func(n string) (string, bool) {
		v, found := env.values[n]
		ok = ok && found
		return v, found
	})
	return out, ok
}

// configSource reads the objects that an environment refers to; nil is one that
// does not exist.
type configSource interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// environment computes a container's environment: services first, then envFrom,
// then env, each able to refer to what stands before it.
func (w *worker) environment(ctx context.Context, req startRequest) (environ, error) {
	var services []*v1.Service
	if w.static {
		services = w.a.services.known() // it does not wait for the API
	} else {
		var err error
		if services, err = w.a.services.wait(ctx); err != nil {
			return environ{}, err
		}
	}
	pod := req.pod.DeepCopy()
	setHostIPs(&pod.Status, w.a.cfg.NodeIPs)
	if len(req.ips) > 0 {
		setPodIPs(&pod.Status, req.ips)
	}
	return buildEnv(ctx, pod, req.spec, serviceEnv(services, pod), w.a.objects, w.a.allocatable())
}

func buildEnv(ctx context.Context, pod *v1.Pod, spec *v1.Container, services map[string]string, src configSource, alloc v1.ResourceList) (environ, error) {
	env := newEnviron()
	for _, from := range spec.EnvFrom {
		if err := addEnvFrom(ctx, &env, pod.Namespace, from, src); err != nil {
			return env, err
		}
	}
	// What the pod sets itself wins over what the node adds.
	lookup := func(n string) (string, bool) {
		if v, ok := env.values[n]; ok {
			return v, true
		}
		v, ok := services[n]
		return v, ok
	}
	for _, e := range spec.Env {
		if e.ValueFrom == nil {
			env.set(e.Name, expand(e.Value, lookup))
			continue
		}
		value, ok, err := envValue(ctx, pod, spec, e.ValueFrom, src, alloc)
		if err != nil {
			return env, err
		}
		if ok {
			env.set(e.Name, value)
		}
	}
	names := make([]string, 0, len(services))
	for n := range services {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if _, ok := env.values[n]; !ok {
			env.set(n, services[n])
		}
	}
	if _, ok := env.values["HOSTNAME"]; !ok && !pod.Spec.HostNetwork {
		env.set("HOSTNAME", hostname(pod))
	}
	return env, nil
}

func addEnvFrom(ctx context.Context, env *environ, namespace string, from v1.EnvFromSource, src configSource) error {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.ConfigMap(ctx, namespace, from.ConfigMapRef.Name)
		if err != nil {
			return err
		}
		if cm == nil {
			if isTrue(from.ConfigMapRef.Optional) {
				return nil
			}
			return fmt.Errorf("configmap %q not found", from.ConfigMapRef.Name)
		}
		data = cm.Data
	case from.SecretRef != nil:
		s, err := src.Secret(ctx, namespace, from.SecretRef.Name)
		if err != nil {
			return err
		}
		if s == nil {
			if isTrue(from.SecretRef.Optional) {
				return nil
			}
			return fmt.Errorf("secret %q not found", from.SecretRef.Name)
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	keys := make([]string, 0, len(data))
	for k := range data {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		name := from.Prefix + k
		if len(validation.IsRelaxedEnvVarName(name)) == 0 {
			env.set(name, data[k])
		}
	}
	return nil
}

// envValue resolves a valueFrom; ok is false for an optional source that does not
// exist.
func envValue(ctx context.Context, pod *v1.Pod, spec *v1.Container, from *v1.EnvVarSource, src configSource, alloc v1.ResourceList) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = volume.FieldValue(pod, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		name := from.ResourceFieldRef.ContainerName
		if name == "" {
			name = spec.Name
		}
		value, err = volume.ResourceValue(pod, name, from.ResourceFieldRef, alloc)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		cm, err := src.ConfigMap(ctx, pod.Namespace, r.Name)
		if err != nil {
			return "", false, err
		}
		if cm != nil {
			if v, ok := cm.Data[r.Key]; ok {
				return v, true, nil
			}
		}
		return missingKey("configmap", "ConfigMap", r.Name, r.Key, pod.Namespace, cm != nil, isTrue(r.Optional))
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		s, err := src.Secret(ctx, pod.Namespace, r.Name)
		if err != nil {
			return "", false, err
		}
		if s != nil {
			if v, ok := s.Data[r.Key]; ok {
				return string(v), true, nil
			}
		}
		return missingKey("secret", "Secret", r.Name, r.Key, pod.Namespace, s != nil, isTrue(r.Optional))
	}
	return "", false, fmt.Errorf("this kind of valueFrom is not supported; use fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef")
}

func missingKey(lower, kind, name, key, namespace string, exists, optional bool) (string, bool, error) {
	switch {
	case optional:
		return "", false, nil
	case !exists:
		return "", false, fmt.Errorf("%s %q not found", lower, name)
	}
	return "", false, fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, namespace, name)
}

func isTrue(b *bool) bool { return b != nil && *b }

// serviceEnv gives the variables by which pods find services: those of the API
// always, those of the pod's namespace when enableServiceLinks is not off. See
// "Discovering services: Environment variables" in the Kubernetes documentation.
func serviceEnv(services []*v1.Service, pod *v1.Pod) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	out := map[string]string{}
	for _, s := range services {
		api := s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes"
		if !api && !(links && s.Namespace == pod.Namespace) {
			continue
		}
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		addServiceEnv(out, s)
	}
	return out
}

func addServiceEnv(out map[string]string, s *v1.Service) {
	name := envName(s.Name)
	ip := s.Spec.ClusterIP
	out[name+"_SERVICE_HOST"] = ip
	out[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+envName(p.Name)] = port
		}
		proto := string(p.Protocol)
		if proto == "" {
			proto = string(v1.ProtocolTCP)
		}
		url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out[name+"_PORT"] = url
		}
		prefix := name + "_PORT_" + port + "_" + strings.ToUpper(proto)
		out[prefix] = url
		out[prefix+"_PROTO"] = strings.ToLower(proto)
		out[prefix+"_PORT"] = port
		out[prefix+"_ADDR"] = ip
	}
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
