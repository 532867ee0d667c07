// Package authz decides who may do what on the API server: static rules for the
// components, everything for system:masters, and for a worker only what concerns
// its own pods.
//
// The rules have the shape of RBAC's PolicyRule and are matched as RBAC does. The
// worker's rights follow Kubernetes' "Using Node Authorization" page.
package authz

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Pods answers the questions about pods that a worker's rights depend on. It must
// have seen every pod that a watch has delivered to anybody.
type Pods interface {
	// Pod returns a pod, or an error when there is none.
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	// PodsOnNode returns the pods of a namespace that are bound to a node.
	PodsOnNode(ctx context.Context, namespace, node string) ([]corev1.Pod, error)
}

// Ingresses answers what a worker's right to certificates depends on.
type Ingresses interface {
	// Served returns the Ingresses of a namespace that the workers serve.
	Served(ctx context.Context, namespace string) ([]networkingv1.Ingress, error)
}

// Gateways answers the same for Gateways.
type Gateways interface {
	// Certified says whether a Gateway that the workers serve has a Secret as a
	// certificate.
	Certified(ctx context.Context, namespace, secret string) (bool, error)
}

// Policies answers what a worker's right to the pods of others depends on.
type Policies interface {
	// Any says whether there is a NetworkPolicy. It must know of every one that a watch
	// has delivered to anybody.
	Any(ctx context.Context) (bool, error)
}

// Authorizer is the whole decision.
type Authorizer struct {
	pods      Pods
	volumes   Volumes
	ingresses Ingresses
	gateways  Gateways
	policies  Policies
}

var (
	_ authorizer.Authorizer   = &Authorizer{}
	_ authorizer.RuleResolver = &Authorizer{}
)

// New returns an Authorizer that asks about what the rights of workers depend on.
func New(pods Pods, volumes Volumes, ingresses Ingresses, gateways Gateways, policies Policies) *Authorizer {
	return &Authorizer{pods: pods, volumes: volumes, ingresses: ingresses, gateways: gateways, policies: policies}
}

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	u := attrs.GetUser()
	if u == nil {
		return authorizer.DecisionNoOpinion, "no user", nil
	}
	if hasGroup(u, user.SystemPrivilegedGroup) {
		return authorizer.DecisionAllow, "", nil
	}
	for _, rule := range rulesOf(u) {
		if allows(rule, attrs) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	if node, ok := NodeName(u); ok {
		return a.authorizeNode(ctx, node, attrs)
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; no decision here is
// conditional.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attrs authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attrs))
}

// EvaluateConditions implements authorizer.Authorizer.
func (*Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// RulesFor implements authorizer.RuleResolver. A worker's rights on its own
// objects cannot be listed as rules, which the answer tells as incomplete.
func (a *Authorizer) RulesFor(_ context.Context, u user.Info, _ string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	rules := rulesOf(u)
	if hasGroup(u, user.SystemPrivilegedGroup) {
		rules = append(rules,
			rbacv1.PolicyRule{Verbs: all, APIGroups: all, Resources: all},
			rbacv1.PolicyRule{Verbs: all, NonResourceURLs: all})
	}
	_, isNode := NodeName(u)
	var resources []authorizer.ResourceRuleInfo
	var paths []authorizer.NonResourceRuleInfo
	for _, r := range rules {
		if len(r.NonResourceURLs) > 0 {
			paths = append(paths, &authorizer.DefaultNonResourceRuleInfo{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
			continue
		}
		resources = append(resources, &authorizer.DefaultResourceRuleInfo{
			Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
		})
	}
	return resources, paths, isNode, nil
}

func hasGroup(u user.Info, group string) bool {
	for _, g := range u.GetGroups() {
		if g == group {
			return true
		}
	}
	return false
}
