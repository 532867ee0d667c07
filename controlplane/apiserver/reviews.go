package apiserver

import (
	"context"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// review is a kind that is asked and answered, and never stored.
type review struct {
	singular   string
	namespaced bool
	newObject  func() runtime.Object
	answer     func(ctx context.Context, obj runtime.Object) error
}

var (
	_ rest.Creater              = &review{}
	_ rest.Scoper               = &review{}
	_ rest.SingularNameProvider = &review{}
)

// New implements rest.Storage.
func (r *review) New() runtime.Object { return r.newObject() }

// Destroy implements rest.Storage.
func (*review) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (r *review) NamespaceScoped() bool { return r.namespaced }

// GetSingularName implements rest.SingularNameProvider.
func (r *review) GetSingularName() string { return r.singular }

// Create implements rest.Creater.
func (r *review) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	if err := r.answer(ctx, obj); err != nil {
		return nil, err
	}
	return obj, nil
}

// reviews are the storages of authentication.k8s.io and authorization.k8s.io.
func (s *Server) reviews() map[schema.GroupVersion]map[string]rest.Storage {
	return map[schema.GroupVersion]map[string]rest.Storage{
		authenticationv1.SchemeGroupVersion: {
			"tokenreviews": &review{
				singular: "tokenreview", newObject: object[authenticationv1.TokenReview], answer: s.reviewToken,
			},
			"selfsubjectreviews": &review{
				singular: "selfsubjectreview", newObject: object[authenticationv1.SelfSubjectReview], answer: reviewSelf,
			},
		},
		authorizationv1.SchemeGroupVersion: {
			"subjectaccessreviews": &review{
				singular: "subjectaccessreview", newObject: object[authorizationv1.SubjectAccessReview], answer: s.reviewAccess,
			},
			"localsubjectaccessreviews": &review{
				singular: "localsubjectaccessreview", namespaced: true,
				newObject: object[authorizationv1.LocalSubjectAccessReview], answer: s.reviewLocalAccess,
			},
			"selfsubjectaccessreviews": &review{
				singular: "selfsubjectaccessreview", newObject: object[authorizationv1.SelfSubjectAccessReview], answer: s.reviewSelfAccess,
			},
			"selfsubjectrulesreviews": &review{
				singular: "selfsubjectrulesreview", newObject: object[authorizationv1.SelfSubjectRulesReview], answer: s.reviewSelfRules,
			},
		},
	}
}

func (s *Server) reviewToken(ctx context.Context, obj runtime.Object) error {
	review := obj.(*authenticationv1.TokenReview)
	if review.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	audiences := authenticator.Audiences(review.Spec.Audiences)
	if len(audiences) == 0 {
		audiences = apiAudiences
	}
	known := group.NewAuthenticatedGroupAdder(authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		return tokenunion.New(s.tokens, s.accountTokens).AuthenticateToken(r.Context(), review.Spec.Token)
	}))
	r, err := http.NewRequestWithContext(authenticator.WithAudiences(ctx, audiences), http.MethodGet, "/", nil)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	resp, ok, err := known.AuthenticateRequest(r)
	review.Status = authenticationv1.TokenReviewStatus{Authenticated: ok}
	if err != nil {
		review.Status.Error = err.Error()
	}
	if ok {
		review.Status.User, review.Status.Audiences = userInfo(resp.User), resp.Audiences
	}
	return nil
}

func userInfo(u user.Info) authenticationv1.UserInfo {
	out := authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	for k, v := range u.GetExtra() {
		if out.Extra == nil {
			out.Extra = map[string]authenticationv1.ExtraValue{}
		}
		out.Extra[k] = v
	}
	return out
}

func reviewSelf(ctx context.Context, obj runtime.Object) error {
	u, err := requester(ctx)
	if err != nil {
		return err
	}
	obj.(*authenticationv1.SelfSubjectReview).Status.UserInfo = userInfo(u)
	return nil
}

func requester(ctx context.Context) (user.Info, error) {
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user in the request")
	}
	return u, nil
}

func (s *Server) reviewAccess(ctx context.Context, obj runtime.Object) error {
	review := obj.(*authorizationv1.SubjectAccessReview)
	attrs, err := reviewedAttributes(reviewedUser(review.Spec), review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
	if err != nil {
		return err
	}
	review.Status = s.decide(ctx, attrs)
	return nil
}

func (s *Server) reviewLocalAccess(ctx context.Context, obj runtime.Object) error {
	review := obj.(*authorizationv1.LocalSubjectAccessReview)
	if review.Spec.ResourceAttributes == nil || review.Spec.ResourceAttributes.Namespace != request.NamespaceValue(ctx) {
		return apierrors.NewBadRequest("spec.resourceAttributes.namespace must match the namespace of the request")
	}
	attrs, err := reviewedAttributes(reviewedUser(review.Spec), review.Spec.ResourceAttributes, nil)
	if err != nil {
		return err
	}
	review.Status = s.decide(ctx, attrs)
	return nil
}

func (s *Server) reviewSelfAccess(ctx context.Context, obj runtime.Object) error {
	review := obj.(*authorizationv1.SelfSubjectAccessReview)
	u, err := requester(ctx)
	if err != nil {
		return err
	}
	attrs, err := reviewedAttributes(u, review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
	if err != nil {
		return err
	}
	review.Status = s.decide(ctx, attrs)
	return nil
}

func reviewedUser(spec authorizationv1.SubjectAccessReviewSpec) user.Info {
	extra := map[string][]string{}
	for k, v := range spec.Extra {
		extra[k] = v
	}
	return &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups, Extra: extra}
}

func reviewedAttributes(u user.Info, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) (authorizer.Attributes, error) {
	if (r == nil) == (n == nil) {
		return nil, apierrors.NewBadRequest("exactly one of resourceAttributes and nonResourceAttributes must be specified")
	}
	if n != nil {
		return authorizer.AttributesRecord{User: u, Verb: n.Verb, Path: n.Path}, nil
	}
	return authorizer.AttributesRecord{
		User: u, Verb: r.Verb, Namespace: r.Namespace, APIGroup: r.Group, APIVersion: r.Version,
		Resource: r.Resource, Subresource: r.Subresource, Name: r.Name, ResourceRequest: true,
	}, nil
}

func (s *Server) decide(ctx context.Context, attrs authorizer.Attributes) authorizationv1.SubjectAccessReviewStatus {
	decision, reason, err := s.authz.Authorize(ctx, attrs)
	status := authorizationv1.SubjectAccessReviewStatus{
		Allowed: decision == authorizer.DecisionAllow, Denied: decision == authorizer.DecisionDeny, Reason: reason,
	}
	if err != nil {
		status.EvaluationError = err.Error()
	}
	return status
}

func (s *Server) reviewSelfRules(ctx context.Context, obj runtime.Object) error {
	review := obj.(*authorizationv1.SelfSubjectRulesReview)
	u, err := requester(ctx)
	if err != nil {
		return err
	}
	if review.Spec.Namespace == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("no namespace on request (status %d)", http.StatusBadRequest))
	}
	resources, paths, incomplete, err := s.authz.RulesFor(ctx, u, review.Spec.Namespace)
	review.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}, Incomplete: incomplete,
	}
	if err != nil {
		review.Status.EvaluationError = err.Error()
	}
	for _, r := range resources {
		review.Status.ResourceRules = append(review.Status.ResourceRules, authorizationv1.ResourceRule{
			Verbs: r.GetVerbs(), APIGroups: r.GetAPIGroups(), Resources: r.GetResources(), ResourceNames: r.GetResourceNames(),
		})
	}
	for _, r := range paths {
		review.Status.NonResourceRules = append(review.Status.NonResourceRules, authorizationv1.NonResourceRule{
			Verbs: r.GetVerbs(), NonResourceURLs: r.GetNonResourceURLs(),
		})
	}
	return nil
}
