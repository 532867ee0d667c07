package authz

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

var (
	all   = []string{"*"}
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "update", "patch", "delete"}
	core  = []string{""}
)

func readWrite() []string { return append(slices.Clone(read), write...) }

// anybody has what is in everyone's reach, known or not.
var anybody = []rbacv1.PolicyRule{
	{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/livez", "/readyz", "/version"}},
}

// authenticated has what every known user may do: discovery, and questions about
// one's own rights.
var authenticated = []rbacv1.PolicyRule{
	{Verbs: []string{"get"}, NonResourceURLs: []string{
		"/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*",
		"/healthz", "/livez", "/readyz", "/version", "/version/",
	}},
	{
		Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"},
		Resources: []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"},
	},
	{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}},
}

// components are the rules of the parts of the control plane, by user name.
var components = map[string][]rbacv1.PolicyRule{
	// The garbage collector and the namespace controller read and delete every
	// kind; what the controllers create is listed.
	pki.UserControllerManager: {
		{Verbs: append(slices.Clone(read), "update", "patch", "delete", "deletecollection"), APIGroups: all, Resources: all},
		{Verbs: []string{"create"}, APIGroups: core, Resources: []string{
			"pods", "pods/eviction", "endpoints", "events", "serviceaccounts", "configmaps", "persistentvolumes", "persistentvolumeclaims",
		}},
		{Verbs: []string{"create"}, APIGroups: []string{"apps"}, Resources: []string{"replicasets", "controllerrevisions"}},
		{Verbs: []string{"create"}, APIGroups: []string{"batch"}, Resources: []string{"jobs"}},
		{Verbs: []string{"create"}, APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}},
		{Verbs: []string{"create"}, APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}},
		{Verbs: []string{"create"}, APIGroups: []string{"events.k8s.io"}, Resources: []string{"events"}},
	},
	pki.UserScheduler: {
		{Verbs: append(slices.Clone(read), "delete"), APIGroups: core, Resources: []string{"pods"}},
		{Verbs: []string{"create"}, APIGroups: core, Resources: []string{"pods/binding", "bindings"}},
		{Verbs: []string{"update", "patch"}, APIGroups: core, Resources: []string{"pods/status"}},
		{Verbs: read, APIGroups: core, Resources: []string{
			"nodes", "namespaces", "services", "replicationcontrollers", "persistentvolumes", "persistentvolumeclaims",
		}},
		{Verbs: []string{"update", "patch"}, APIGroups: core, Resources: []string{"persistentvolumes", "persistentvolumeclaims"}},
		{Verbs: read, APIGroups: []string{"apps"}, Resources: []string{"replicasets", "statefulsets"}},
		{Verbs: read, APIGroups: []string{"policy"}, Resources: []string{"poddisruptionbudgets"}},
		{Verbs: read, APIGroups: []string{"storage.k8s.io", "scheduling.k8s.io"}, Resources: all},
		{Verbs: []string{"create", "update", "patch"}, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
		{Verbs: readWrite(), APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}},
	},
	// The reconciler applies whatever a repository holds.
	pki.UserReconciler: {
		{Verbs: append(readWrite(), "deletecollection"), APIGroups: all, Resources: all},
	},
}

// nodes are the rights that every worker has alike; those on its own objects are
// in node.go.
var nodes = []rbacv1.PolicyRule{
	{Verbs: read, APIGroups: core, Resources: []string{"nodes", "services", "endpoints"}},
	{Verbs: read, APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}},
	{Verbs: read, APIGroups: []string{"networking.k8s.io"}, Resources: []string{"ingresses", "ingressclasses"}},
	{Verbs: read, APIGroups: []string{"gateway.networking.k8s.io"}, Resources: []string{"gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"}},
	{Verbs: []string{"list", "watch"}, APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}},
	// To renew its certificates: a request and its certificate are no secrets.
	{Verbs: append(slices.Clone(read), "create"), APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests"}},
	{Verbs: []string{"list", "watch"}, APIGroups: core, Resources: []string{"namespaces"}},
	{Verbs: []string{"create", "update", "patch"}, APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}},
}

func rulesOf(u user.Info) []rbacv1.PolicyRule {
	out := slices.Clone(anybody)
	if !hasGroup(u, user.AllAuthenticated) {
		return out
	}
	out = append(out, authenticated...)
	out = append(out, components[u.GetName()]...)
	if _, ok := NodeName(u); ok {
		out = append(out, nodes...)
	}
	return out
}

// allows matches a request with a rule as RBAC does.
func allows(rule rbacv1.PolicyRule, attrs authorizer.Attributes) bool {
	if !matches(rule.Verbs, attrs.GetVerb()) {
		return false
	}
	if !attrs.IsResourceRequest() {
		return slices.ContainsFunc(rule.NonResourceURLs, func(p string) bool {
			return p == attrs.GetPath() || (strings.HasSuffix(p, "*") && strings.HasPrefix(attrs.GetPath(), strings.TrimSuffix(p, "*")))
		})
	}
	resource := attrs.GetResource()
	if sub := attrs.GetSubresource(); sub != "" {
		resource += "/" + sub
	}
	return matches(rule.APIGroups, attrs.GetAPIGroup()) && matches(rule.Resources, resource) &&
		(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, attrs.GetName()))
}

func matches(list []string, want string) bool {
	return slices.Contains(list, want) || slices.Contains(list, "*")
}
