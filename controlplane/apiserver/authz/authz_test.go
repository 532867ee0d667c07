package authz

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// cluster is the pods that there are.
type cluster []corev1.Pod

func (c cluster) Pod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	for i := range c {
		if c[i].Namespace == namespace && c[i].Name == name {
			return &c[i], nil
		}
	}
	return nil, errors.New("not found")
}

func (c cluster) PodsOnNode(_ context.Context, namespace, node string) ([]corev1.Pod, error) {
	var out []corev1.Pod
	for _, p := range c {
		if p.Namespace == namespace && p.Spec.NodeName == node {
			out = append(out, p)
		}
	}
	return out, nil
}

func testPod(name, node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.PodSpec{
			NodeName:         node,
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull-" + name}},
			Volumes: []corev1.Volume{
				{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol-" + name}}},
				{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "proj-" + name}}},
				}}}},
			},
			Containers: []corev1.Container{{
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env-" + name}}}},
				Env: []corev1.EnvVar{{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
					LocalObjectReference: corev1.LocalObjectReference{Name: "key-" + name},
				}}}},
			}},
		},
	}
}

// ingresses has one Ingress in namespace ns, with the certificate "cert".
type ingresses struct{}

func (ingresses) Served(_ context.Context, namespace string) ([]networkingv1.Ingress, error) {
	if namespace != "ns" {
		return nil, nil
	}
	return []networkingv1.Ingress{{Spec: networkingv1.IngressSpec{TLS: []networkingv1.IngressTLS{{SecretName: "cert"}}}}}, nil
}

// gateways has one Gateway, with the certificate "gateway-cert" of namespace ns.
type gateways struct{}

func (gateways) Certified(_ context.Context, namespace, secret string) (bool, error) {
	return namespace == "ns" && secret == "gateway-cert", nil
}

// policies says whether there are NetworkPolicies.
type policies bool

func (p policies) Any(context.Context) (bool, error) { return bool(p), nil }

func person(name string, groups ...string) user.Info {
	return &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)}
}

func TestAuthorize(t *testing.T) {
	a := New(cluster{testPod("a", "one"), testPod("b", "two")}, volumes{}, ingresses{}, gateways{}, policies(false))
	node := person(pki.UserNodePrefix+"one", pki.GroupNodes)
	impostor := person(pki.UserNodePrefix + "one")
	controllers, scheduler, reconciler := person(pki.UserControllerManager), person(pki.UserScheduler), person(pki.UserReconciler)
	admin, nobody := person("anybody", user.SystemPrivilegedGroup), person("nobody")
	anonymous := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}

	type request struct{ verb, group, resource, sub, namespace, name, selector string }
	tests := []struct {
		who  user.Info
		what request
		want bool
	}{
		{admin, request{verb: "delete", resource: "secrets", namespace: "ns", name: "x"}, true},
		{nobody, request{verb: "get", resource: "pods", namespace: "ns", name: "a"}, false},
		{nobody, request{verb: "create", group: "authorization.k8s.io", resource: "selfsubjectaccessreviews"}, true},
		{nobody, request{verb: "create", group: "authorization.k8s.io", resource: "subjectaccessreviews"}, false},
		{anonymous, request{verb: "create", group: "authorization.k8s.io", resource: "selfsubjectaccessreviews"}, false},

		{controllers, request{verb: "delete", group: "any.example", resource: "things", namespace: "ns", name: "x"}, true},
		{controllers, request{verb: "create", resource: "pods", namespace: "ns"}, true},
		{controllers, request{verb: "create", resource: "pods", sub: "exec", namespace: "ns", name: "a"}, false},
		{controllers, request{verb: "impersonate", resource: "users", name: "x"}, false},
		{scheduler, request{verb: "create", resource: "pods", sub: "binding", namespace: "ns", name: "a"}, true},
		{scheduler, request{verb: "get", resource: "secrets", namespace: "ns", name: "x"}, false},
		{scheduler, request{verb: "create", resource: "pods", namespace: "ns"}, false},
		{reconciler, request{verb: "patch", group: "apps", resource: "deployments", namespace: "ns", name: "x"}, true},
		{reconciler, request{verb: "impersonate", resource: "users", name: "x"}, false},

		{node, request{verb: "get", resource: "pods", namespace: "ns", name: "a"}, true},
		{node, request{verb: "get", resource: "pods", namespace: "ns", name: "b"}, false},
		{node, request{verb: "get", resource: "pods", namespace: "ns", name: "absent"}, false},
		{node, request{verb: "list", resource: "pods"}, false},
		{node, request{verb: "watch", resource: "pods", selector: "spec.nodeName=one"}, true},
		{node, request{verb: "watch", resource: "pods", selector: "spec.nodeName=two"}, false},
		{node, request{verb: "list", resource: "pods", selector: "spec.nodeName!=one"}, false},
		{node, request{verb: "create", resource: "pods", namespace: "ns"}, true},
		{node, request{verb: "update", resource: "pods", namespace: "ns", name: "a"}, false},
		{node, request{verb: "create", resource: "pods", sub: "exec", namespace: "ns", name: "a"}, false},
		{node, request{verb: "patch", resource: "pods", sub: "status", namespace: "ns", name: "a"}, true},
		{node, request{verb: "patch", resource: "pods", sub: "status", namespace: "ns", name: "b"}, false},
		{node, request{verb: "patch", resource: "pods", namespace: "ns", name: "a"}, false},
		{node, request{verb: "delete", resource: "pods", namespace: "ns", name: "a"}, true},
		{node, request{verb: "delete", resource: "pods", namespace: "ns", name: "b"}, false},
		{node, request{verb: "deletecollection", resource: "pods", namespace: "ns"}, false},
		{node, request{verb: "get", resource: "secrets", namespace: "ns", name: "vol-a"}, true},
		{node, request{verb: "get", resource: "secrets", namespace: "ns", name: "pull-a"}, true},
		{node, request{verb: "get", resource: "secrets", namespace: "ns", name: "key-a"}, true},
		{node, request{verb: "get", resource: "secrets", namespace: "ns", name: "vol-b"}, false},
		{node, request{verb: "get", resource: "secrets", namespace: "other", name: "vol-a"}, false},
		{node, request{verb: "list", resource: "secrets", namespace: "ns"}, false},
		{node, request{verb: "watch", resource: "secrets", namespace: "ns", name: "cert"}, true},
		{node, request{verb: "watch", resource: "secrets", namespace: "other", name: "cert"}, false},
		{node, request{verb: "update", resource: "secrets", namespace: "ns", name: "cert"}, false},
		{node, request{verb: "watch", resource: "secrets", namespace: "ns", name: "gateway-cert"}, true},
		{node, request{verb: "watch", resource: "secrets", namespace: "other", name: "gateway-cert"}, false},
		{node, request{verb: "list", group: "gateway.networking.k8s.io", resource: "httproutes"}, true},
		{node, request{verb: "update", group: "gateway.networking.k8s.io", resource: "httproutes", sub: "status", namespace: "ns", name: "x"}, false},
		{impostor, request{verb: "get", resource: "secrets", namespace: "ns", name: "cert"}, false},
		{node, request{verb: "list", group: "networking.k8s.io", resource: "ingresses"}, true},
		{node, request{verb: "update", group: "networking.k8s.io", resource: "ingresses", sub: "status", namespace: "ns", name: "web"}, false},
		{node, request{verb: "update", resource: "secrets", namespace: "ns", name: "vol-a"}, false},
		{node, request{verb: "watch", resource: "configmaps", namespace: "ns", name: "env-a"}, true},
		{node, request{verb: "get", resource: "configmaps", namespace: "ns", name: "proj-a"}, true},
		{node, request{verb: "get", resource: "configmaps", namespace: "ns", name: "env-b"}, false},
		{node, request{verb: "list", resource: "services"}, true},
		{node, request{verb: "watch", group: "discovery.k8s.io", resource: "endpointslices"}, true},
		{node, request{verb: "list", resource: "nodes"}, true},
		{node, request{verb: "patch", resource: "nodes", sub: "status", name: "one"}, true},
		{node, request{verb: "patch", resource: "nodes", sub: "status", name: "two"}, false},
		{node, request{verb: "delete", resource: "nodes", name: "one"}, false},
		{node, request{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "kube-node-lease", name: "one"}, true},
		{node, request{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "kube-node-lease", name: "two"}, false},
		{node, request{verb: "update", group: "coordination.k8s.io", resource: "leases", namespace: "kube-system", name: "one"}, false},
		{node, request{verb: "create", resource: "events", namespace: "ns"}, true},
		{node, request{verb: "create", group: "certificates.k8s.io", resource: "certificatesigningrequests"}, true},
		{node, request{verb: "watch", group: "certificates.k8s.io", resource: "certificatesigningrequests"}, true},
		{node, request{verb: "update", group: "certificates.k8s.io", resource: "certificatesigningrequests", name: "x"}, false},
		{node, request{verb: "update", group: "certificates.k8s.io", resource: "certificatesigningrequests", sub: "approval", name: "x"}, false},
		{node, request{verb: "update", group: "certificates.k8s.io", resource: "certificatesigningrequests", sub: "status", name: "x"}, false},
		{nobody, request{verb: "create", group: "certificates.k8s.io", resource: "certificatesigningrequests"}, false},
		{impostor, request{verb: "get", resource: "pods", namespace: "ns", name: "a"}, false},
	}
	for _, tt := range tests {
		attrs := authorizer.AttributesRecord{
			User: tt.who, Verb: tt.what.verb, APIGroup: tt.what.group, Resource: tt.what.resource, Subresource: tt.what.sub,
			Namespace: tt.what.namespace, Name: tt.what.name, ResourceRequest: true,
		}
		if tt.what.selector != "" {
			selector, err := fields.ParseSelector(tt.what.selector)
			if err != nil {
				t.Fatal(err)
			}
			attrs.FieldSelectorRequirements = selector.Requirements()
		}
		decision, reason, err := a.Authorize(t.Context(), attrs)
		if err != nil || (decision == authorizer.DecisionAllow) != tt.want {
			t.Errorf("%s %+v: %v %s %v", tt.who.GetName(), tt.what, decision, reason, err)
		}
	}
}

func TestPaths(t *testing.T) {
	a := New(cluster{}, volumes{}, ingresses{}, gateways{}, policies(false))
	anonymous := &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	for _, tt := range []struct {
		who  user.Info
		path string
		want bool
	}{
		{anonymous, "/readyz", true},
		{anonymous, "/api", false},
		{person("nobody"), "/openapi/v3", true},
		{person("nobody"), "/apis/apps/v1", true},
		{person("nobody"), "/metrics", false},
		{person("x", user.SystemPrivilegedGroup), "/metrics", true},
	} {
		decision, _, err := a.Authorize(t.Context(), authorizer.AttributesRecord{User: tt.who, Verb: "get", Path: tt.path})
		if err != nil || (decision == authorizer.DecisionAllow) != tt.want {
			t.Errorf("%s %s: %v %v", tt.who.GetName(), tt.path, decision, err)
		}
	}
}

// TestPolicies: a worker follows the pods of all nodes while there are NetworkPolicies.
func TestPolicies(t *testing.T) {
	node, nobody := person(pki.UserNodePrefix+"one", pki.GroupNodes), person("nobody")
	for _, tt := range []struct {
		who                                   user.Info
		verb, group, resource, name, selector string
		without, with                         bool
	}{
		{node, "list", "", "pods", "", "", false, true},
		{node, "watch", "", "pods", "", "", false, true},
		{node, "watch", "", "pods", "", "spec.nodeName=two", false, true},
		{node, "watch", "", "pods", "", "spec.nodeName=one", true, true},
		{node, "get", "", "pods", "b", "", false, false},
		{node, "watch", "", "pods", "b", "", false, false},
		{node, "delete", "", "pods", "b", "", false, false},
		{node, "deletecollection", "", "pods", "", "", false, false},
		{node, "list", "networking.k8s.io", "networkpolicies", "", "", true, true},
		{node, "watch", "networking.k8s.io", "networkpolicies", "", "", true, true},
		{node, "update", "networking.k8s.io", "networkpolicies", "deny", "", false, false},
		{node, "list", "", "namespaces", "", "", true, true},
		{node, "delete", "", "namespaces", "ns", "", false, false},
		{node, "list", "", "secrets", "", "", false, false},
		{nobody, "list", "", "pods", "", "", false, false},
		{nobody, "list", "networking.k8s.io", "networkpolicies", "", "", false, false},
	} {
		for _, exist := range []bool{false, true} {
			attrs := authorizer.AttributesRecord{User: tt.who, Verb: tt.verb, APIGroup: tt.group, Resource: tt.resource, Name: tt.name, Namespace: "ns", ResourceRequest: true}
			if tt.selector != "" {
				selector, err := fields.ParseSelector(tt.selector)
				if err != nil {
					t.Fatal(err)
				}
				attrs.FieldSelectorRequirements = selector.Requirements()
			}
			want := tt.without
			if exist {
				want = tt.with
			}
			a := New(cluster{testPod("a", "one"), testPod("b", "two")}, volumes{}, ingresses{}, gateways{}, policies(exist))
			decision, reason, err := a.Authorize(t.Context(), attrs)
			if err != nil || (decision == authorizer.DecisionAllow) != want {
				t.Errorf("%s %s %s %s %s, policies %v: %v %s %v", tt.who.GetName(), tt.verb, tt.resource, tt.name, tt.selector, exist, decision, reason, err)
			}
		}
	}
}
