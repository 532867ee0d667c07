package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"gitk8s.dev/gitk8s/controlplane/apiserver/satoken"
)

const (
	defaultTokenSeconds = 60 * 60
	leastTokenSeconds   = 10 * 60
	mostTokenSeconds    = 1 << 32
	// deletedGrace is how long a token outlives the beginning of its object's end, as
	// in kube-apiserver: what a pod does while it stops it may do.
	deletedGrace = 60 * time.Second
)

// apiAudiences are those that a token for this API is for.
var apiAudiences = authenticator.Audiences{satoken.Issuer}

// accountTokens makes and checks the tokens of service accounts.
type accountTokens struct {
	server *Server
	signer *satoken.Signer
}

func newAccountTokens(s *Server) (*accountTokens, error) {
	key, err := s.config.CA.TokenKey()
	if err != nil {
		return nil, err
	}
	signer, err := satoken.NewSigner(key)
	return &accountTokens{s, signer}, err
}

func serviceAccountSubresources(s *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"token": &tokenREST{accounts: st, tokens: s.accountTokens}}
}

// tokenREST is serviceaccounts/token.
type tokenREST struct {
	accounts *store
	tokens   *accountTokens
}

var (
	_ rest.NamedCreater             = &tokenREST{}
	_ rest.GroupVersionKindProvider = &tokenREST{}
)

// New implements rest.Storage.
func (*tokenREST) New() runtime.Object { return &authenticationv1.TokenRequest{} }

// Destroy implements rest.Storage.
func (*tokenREST) Destroy() {}

// GroupVersionKind says that the body is of another group than service accounts.
func (*tokenREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
}

// Create implements rest.NamedCreater.
func (t *tokenREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	req, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a TokenRequest: %T", obj))
	}
	found, err := t.accounts.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	account := found.(*corev1.ServiceAccount)
	now := t.tokens.server.now()
	if errs := completeTokenRequest(req, account, now); len(errs) > 0 {
		return nil, apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), "", errs)
	}
	if validate != nil {
		if err := validate(ctx, req.DeepCopy()); err != nil {
			return nil, err
		}
	}
	binding := satoken.Binding{Namespace: account.Namespace, ServiceAccount: satoken.Object{Name: account.Name, UID: string(account.UID)}}
	if err := t.tokens.bind(ctx, &binding, req.Spec.BoundObjectRef); err != nil {
		return nil, err
	}
	expires := now.Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second)
	req.Status = authenticationv1.TokenRequestStatus{ExpirationTimestamp: metav1.NewTime(expires)}
	if options != nil && dryrun.IsDryRun(options.DryRun) {
		return req, nil
	}
	if req.Status.Token, err = t.tokens.signer.Sign(binding, req.Spec.Audiences, now, expires); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return req, nil
}

// completeTokenRequest sets what the request leaves out, and checks it.
func completeTokenRequest(req *authenticationv1.TokenRequest, account *corev1.ServiceAccount, now time.Time) field.ErrorList {
	var errs field.ErrorList
	if req.Name != "" && req.Name != account.Name {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), req.Name, "must match the service account name if specified"))
	}
	if req.Namespace != "" && req.Namespace != account.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "namespace"), req.Namespace, "must match the service account namespace if specified"))
	}
	req.Name, req.Namespace, req.CreationTimestamp = account.Name, account.Namespace, metav1.NewTime(now)
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = apiAudiences
	}
	seconds := int64(defaultTokenSeconds)
	if req.Spec.ExpirationSeconds == nil {
		req.Spec.ExpirationSeconds = &seconds
	}
	p := field.NewPath("spec", "expirationSeconds")
	switch n := *req.Spec.ExpirationSeconds; {
	case n < leastTokenSeconds:
		errs = append(errs, field.Invalid(p, n, "may not specify a duration less than 10 minutes"))
	case n > mostTokenSeconds:
		errs = append(errs, field.Invalid(p, n, "may not specify a duration larger than 2^32 seconds"))
	}
	return errs
}

// bind adds the object that the token is bound to, which must exist.
func (t *accountTokens) bind(ctx context.Context, b *satoken.Binding, ref *authenticationv1.BoundObjectReference) error {
	if ref == nil {
		return nil
	}
	kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	object := &satoken.Object{Name: ref.Name}
	switch kind {
	case corev1.SchemeGroupVersion.WithKind("Pod"):
		pod, err := t.get(ctx, "pods", ref.Name)
		if err != nil {
			return err
		}
		p := pod.(*corev1.Pod)
		if p.Spec.ServiceAccountName != b.ServiceAccount.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", b.ServiceAccount.Name))
		}
		object.UID, b.Pod = string(p.UID), object
		if p.Spec.NodeName != "" {
			b.Node = &satoken.Object{Name: p.Spec.NodeName}
			if node, err := t.server.stores[corev1.Resource("nodes")].Get(ctx, p.Spec.NodeName, &metav1.GetOptions{ResourceVersion: "0"}); err == nil {
				b.Node.UID = string(node.(*corev1.Node).UID)
			}
		}
	case corev1.SchemeGroupVersion.WithKind("Secret"):
		secret, err := t.get(ctx, "secrets", ref.Name)
		if err != nil {
			return err
		}
		object.UID, b.Secret = string(secret.(*corev1.Secret).UID), object
	case corev1.SchemeGroupVersion.WithKind("Node"):
		node, err := t.get(ctx, "nodes", ref.Name)
		if err != nil {
			return err
		}
		object.UID, b.Node = string(node.(*corev1.Node).UID), object
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", kind))
	}
	if ref.UID != "" && string(ref.UID) != object.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, ref.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return nil
}

// get reads an object of another kind than the request's.
func (t *accountTokens) get(ctx context.Context, resource, name string) (runtime.Object, error) {
	obj, err := t.server.stores[corev1.Resource(resource)].Get(ctx, name, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// The store words it for the resource of the request.
		err = apierrors.NewNotFound(corev1.Resource(resource), name)
	}
	return obj, err
}

// AuthenticateToken implements authenticator.Token.
func (t *accountTokens) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	if !satoken.Issued(token) {
		return nil, false, nil
	}
	now := t.server.now()
	claims, err := t.signer.Verify(token, now)
	if err != nil {
		return nil, false, err
	}
	wanted, ok := authenticator.AudiencesFrom(ctx)
	if !ok || len(wanted) == 0 {
		wanted = apiAudiences
	}
	audiences := wanted.Intersect(authenticator.Audiences(claims.Audience))
	if len(audiences) == 0 {
		return nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", claims.Audience, wanted)
	}
	if err := t.stillBound(ctx, &claims.Binding, now); err != nil {
		return nil, false, err
	}
	b := claims.Binding
	info := serviceaccount.ServiceAccountInfo{Namespace: b.Namespace, Name: b.ServiceAccount.Name, UID: b.ServiceAccount.UID, CredentialID: "JTI=" + claims.ID}
	if b.Pod != nil {
		info.PodName, info.PodUID = b.Pod.Name, b.Pod.UID
	}
	if b.Node != nil {
		info.NodeName, info.NodeUID = b.Node.Name, b.Node.UID
	}
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}

var errInvalidated = errors.New("service account token has been invalidated")

// stillBound says whether everything that a token is bound to is still there.
func (t *accountTokens) stillBound(ctx context.Context, b *satoken.Binding, now time.Time) error {
	type bound struct {
		resource string
		object   *satoken.Object
	}
	objects := []bound{{"serviceaccounts", &b.ServiceAccount}, {"pods", b.Pod}, {"secrets", b.Secret}}
	if b.Pod == nil {
		// The node of a pod is told, not checked: the pod goes with it.
		objects = append(objects, bound{"nodes", b.Node})
	}
	ctx = request.WithNamespace(ctx, b.Namespace)
	for _, o := range objects {
		if o.object == nil {
			continue
		}
		st := t.server.stores[corev1.Resource(o.resource)]
		obj, err := st.Get(ctx, o.object.Name, &metav1.GetOptions{ResourceVersion: "0"})
		if apierrors.IsNotFound(err) {
			obj, err = st.Get(ctx, o.object.Name, &metav1.GetOptions{})
		}
		if apierrors.IsNotFound(err) {
			return errInvalidated
		}
		if err != nil {
			return err
		}
		m := accessor(obj)
		if string(m.GetUID()) != o.object.UID || !m.GetDeletionTimestamp().IsZero() && m.GetDeletionTimestamp().Add(deletedGrace).Before(now) {
			return errInvalidated
		}
	}
	return nil
}
