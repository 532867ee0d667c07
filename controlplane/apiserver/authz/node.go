package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// NodeName returns the node that a user is the worker of.
func NodeName(u user.Info) (string, bool) {
	name, ok := strings.CutPrefix(u.GetName(), pki.UserNodePrefix)
	return name, ok && name != "" && hasGroup(u, pki.GroupNodes)
}

// authorizeNode decides about what a worker does to objects of its own.
func (a *Authorizer) authorizeNode(ctx context.Context, node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	if !attrs.IsResourceRequest() {
		return authorizer.DecisionNoOpinion, "", nil
	}
	switch attrs.GetAPIGroup() {
	case corev1.GroupName:
		switch attrs.GetResource() {
		case "nodes":
			return nodeObject(node, attrs)
		case "pods":
			return a.nodePod(ctx, node, attrs)
		case "secrets", "configmaps", "persistentvolumeclaims":
			return a.nodeReference(ctx, node, attrs)
		case "persistentvolumes":
			return a.nodeVolume(ctx, node, attrs)
		case "serviceaccounts":
			return a.nodeToken(ctx, node, attrs)
		}
	case "coordination.k8s.io":
		if attrs.GetResource() == "leases" {
			return nodeLease(node, attrs)
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func refuse(format string, args ...any) (authorizer.Decision, string, error) {
	return authorizer.DecisionNoOpinion, fmt.Sprintf(format, args...), nil
}

// nodeObject lets a worker write its own Node. The name of a Node that is created
// is not known here; RestrictNode looks at it.
func nodeObject(node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	sub := attrs.GetSubresource()
	switch attrs.GetVerb() {
	case "create":
		if sub == "" {
			return authorizer.DecisionAllow, "", nil
		}
	case "update", "patch", "get":
		if (sub == "" || sub == "status") && attrs.GetName() == node {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return refuse("node %q may write only its own Node", node)
}

// nodeLease lets a worker renew its own lease.
func nodeLease(node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	if attrs.GetNamespace() != corev1.NamespaceNodeLease || attrs.GetSubresource() != "" {
		return refuse("a node may only use leases in %s", corev1.NamespaceNodeLease)
	}
	switch attrs.GetVerb() {
	case "create":
		return authorizer.DecisionAllow, "", nil
	case "get", "update", "patch", "delete":
		if attrs.GetName() == node {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return refuse("node %q may only use its own lease", node)
}

// nodePod lets a worker follow, report on and remove the pods bound to it, follow all
// pods while there is a NetworkPolicy to enforce, and create
// mirrors of its static pods: admission sees to it that it creates no others.
func (a *Authorizer) nodePod(ctx context.Context, node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	verb, sub := attrs.GetVerb(), attrs.GetSubresource()
	switch {
	case sub == "" && (verb == "create" || (verb == "list" || verb == "watch") && selectsNode(attrs, node)):
		return authorizer.DecisionAllow, "", nil
	case sub == "" && (verb == "get" || verb == "delete" || ((verb == "list" || verb == "watch") && attrs.GetName() != "")):
	case sub == "status" && (verb == "get" || verb == "update" || verb == "patch"):
	case sub == "" && (verb == "list" || verb == "watch"):
		// Which addresses a policy lets through depends on the pods of all nodes.
		exists, err := a.policies.Any(ctx)
		if err != nil {
			return authorizer.DecisionNoOpinion, "", fmt.Errorf("look for network policies: %w", err)
		}
		if exists {
			return authorizer.DecisionAllow, "", nil
		}
		return refuse("while there is no NetworkPolicy node %q may list and watch pods only with the field selector spec.nodeName=%s", node, node)
	default:
		return refuse("a node may not %s %s", verb, strings.TrimSuffix("pods/"+sub, "/"))
	}
	if attrs.GetName() == "" {
		return refuse("a node may only name pods one by one")
	}
	pod, err := a.pods.Pod(ctx, attrs.GetNamespace(), attrs.GetName())
	if err != nil || pod.Spec.NodeName != node {
		// Whether the pod exists elsewhere is not told.
		return refuse("pod %s/%s is not bound to node %q", attrs.GetNamespace(), attrs.GetName(), node)
	}
	return authorizer.DecisionAllow, "", nil
}

// selectsNode tells whether a request's field selector confines it to a node.
func selectsNode(attrs authorizer.Attributes, node string) bool {
	requirements, err := attrs.GetFieldSelector()
	if err != nil {
		return false
	}
	for _, r := range requirements {
		if r.Field == "spec.nodeName" && r.Value == node && (r.Operator == selection.Equals || r.Operator == selection.DoubleEquals || r.Operator == selection.In) {
			return true
		}
	}
	return false
}

// certifies says whether a Secret is the certificate of an Ingress or a Gateway, which
// every worker serves.
func (a *Authorizer) certifies(ctx context.Context, namespace, name string) (bool, error) {
	served, err := a.ingresses.Served(ctx, namespace)
	if err != nil {
		return false, fmt.Errorf("list the ingresses of namespace %s: %w", namespace, err)
	}
	for _, ing := range served {
		if slices.ContainsFunc(ing.Spec.TLS, func(t networkingv1.IngressTLS) bool { return t.SecretName == name }) {
			return true, nil
		}
	}
	ok, err := a.gateways.Certified(ctx, namespace, name)
	if err != nil {
		return false, fmt.Errorf("look for gateways: %w", err)
	}
	return ok, nil
}

// nodeReference lets a worker read the ConfigMaps, Secrets and claims that its pods
// name, and the certificates of Ingresses and Gateways.
func (a *Authorizer) nodeReference(ctx context.Context, node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	verb := attrs.GetVerb()
	if (verb != "get" && verb != "list" && verb != "watch") || attrs.GetSubresource() != "" {
		return refuse("a node may only read %s", attrs.GetResource())
	}
	if attrs.GetName() == "" || attrs.GetNamespace() == "" {
		return refuse("a node may read %s only one by one, by name", attrs.GetResource())
	}
	named, err := a.refers(ctx, node, attrs.GetNamespace(), func(pod *corev1.Pod) bool {
		secrets, configMaps := References(pod)
		names := configMaps
		switch attrs.GetResource() {
		case "secrets":
			names = secrets
		case "persistentvolumeclaims":
			names = Claims(pod)
		}
		return slices.Contains(names, attrs.GetName())
	})
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	if !named && attrs.GetResource() == "secrets" {
		named, err = a.certifies(ctx, attrs.GetNamespace(), attrs.GetName())
		if err != nil {
			return authorizer.DecisionNoOpinion, "", err
		}
	}
	if named {
		return authorizer.DecisionAllow, "", nil
	}
	return refuse("no pod on node %q refers to %s %s/%s", node, attrs.GetResource(), attrs.GetNamespace(), attrs.GetName())
}

// refers says whether a pod on a node refers to something in its namespace.
func (a *Authorizer) refers(ctx context.Context, node, namespace string, refers func(*corev1.Pod) bool) (bool, error) {
	pods, err := a.pods.PodsOnNode(ctx, namespace, node)
	if err != nil {
		return false, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	return slices.ContainsFunc(pods, func(pod corev1.Pod) bool { return refers(&pod) }), nil
}

// nodeToken lets a worker ask for tokens of the accounts that its pods run under.
// What they are bound to is for admission to look at.
func (a *Authorizer) nodeToken(ctx context.Context, node string, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	if attrs.GetVerb() != "create" || attrs.GetSubresource() != "token" {
		return refuse("a node may only create serviceaccounts/token")
	}
	pods, err := a.pods.PodsOnNode(ctx, attrs.GetNamespace(), node)
	if err != nil {
		return authorizer.DecisionNoOpinion, "", fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	for i := range pods {
		if pods[i].Spec.ServiceAccountName == attrs.GetName() {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return refuse("no pod on node %q runs as service account %s/%s", node, attrs.GetNamespace(), attrs.GetName())
}

// References returns the names of the Secrets and ConfigMaps that a pod needs.
func References(pod *corev1.Pod) (secrets, configMaps []string) {
	for _, s := range pod.Spec.ImagePullSecrets {
		secrets = append(secrets, s.Name)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Secret != nil {
			secrets = append(secrets, v.Secret.SecretName)
		}
		if v.ConfigMap != nil {
			configMaps = append(configMaps, v.ConfigMap.Name)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				secrets = append(secrets, s.Secret.Name)
			}
			if s.ConfigMap != nil {
				configMaps = append(configMaps, s.ConfigMap.Name)
			}
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			s, c := containerReferences(&list[i])
			secrets, configMaps = append(secrets, s...), append(configMaps, c...)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		s, c := containerReferences((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
		secrets, configMaps = append(secrets, s...), append(configMaps, c...)
	}
	return secrets, configMaps
}

func containerReferences(c *corev1.Container) (secrets, configMaps []string) {
	for _, f := range c.EnvFrom {
		if f.SecretRef != nil {
			secrets = append(secrets, f.SecretRef.Name)
		}
		if f.ConfigMapRef != nil {
			configMaps = append(configMaps, f.ConfigMapRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			secrets = append(secrets, r.Name)
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			configMaps = append(configMaps, r.Name)
		}
	}
	return secrets, configMaps
}
