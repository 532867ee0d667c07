package apiserver_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

// TestServiceAccountTokens asks for tokens, uses them, and sees them end with what
// they are bound to.
func TestServiceAccountTokens(t *testing.T) {
	var ahead atomic.Int64 // what the server's clock is ahead
	cp := apiservertest.StartWith(t, func(c *apiserver.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	admin := kubernetes.NewForConfigOrDie(cp.Admin)
	ctx := t.Context()
	accounts := admin.CoreV1().ServiceAccounts("default")
	for _, name := range []string{"default", "robot"} {
		if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	as := func(token string) kubernetes.Interface {
		return kubernetes.NewForConfigOrDie(&rest.Config{Host: cp.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: cp.CA.CertPEM()}})
	}
	ask := func(t *testing.T, name string, spec authenticationv1.TokenRequestSpec) (string, error) {
		t.Helper()
		got, err := accounts.CreateToken(ctx, name, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			return "", err
		}
		return got.Status.Token, nil
	}
	who := func(token string) (*authenticationv1.UserInfo, error) {
		r, err := as(token).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		return &r.Status.UserInfo, nil
	}
	pod := func(t *testing.T, name, account string) *corev1.Pod {
		t.Helper()
		p := newPod(name)
		p.Spec.ServiceAccountName, p.Spec.NodeName = account, "n1"
		return createPod(t, admin, p)
	}

	t.Run("identity", func(t *testing.T) {
		token, err := ask(t, "robot", authenticationv1.TokenRequestSpec{})
		if err != nil {
			t.Fatal(err)
		}
		u, err := who(token)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"} {
			if !slices.Contains(u.Groups, g) {
				t.Errorf("it is not in %s: %v", g, u.Groups)
			}
		}
		if u.Username != "system:serviceaccount:default:robot" || len(u.Extra["authentication.kubernetes.io/credential-id"]) != 1 {
			t.Errorf("%+v", u)
		}
		if _, err := as(token).Discovery().ServerGroups(); err != nil {
			t.Errorf("discovery: %v", err)
		}
		if _, err := as(token).CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("it may do more than discovery: %v", err)
		}
		if _, err := who(token[:len(token)-2]); !apierrors.IsUnauthorized(err) {
			t.Errorf("a damaged token: %v", err)
		}
	})

	t.Run("audiences and reviews", func(t *testing.T) {
		token, err := ask(t, "robot", authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := who(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("the API takes a token for somebody else: %v", err)
		}
		for _, tt := range []struct {
			audiences []string
			want      bool
		}{{nil, false}, {[]string{"vault", "other"}, true}, {[]string{"other"}, false}} {
			r, err := admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
				Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: tt.audiences}}, metav1.CreateOptions{})
			if err != nil || r.Status.Authenticated != tt.want {
				t.Errorf("%v: %+v, %v", tt.audiences, r.Status, err)
			}
			if tt.want && (!slices.Equal(r.Status.Audiences, []string{"vault"}) || r.Status.User.Username != "system:serviceaccount:default:robot") {
				t.Errorf("%+v", r.Status)
			}
		}
	})

	t.Run("what is refused", func(t *testing.T) {
		p := pod(t, "other", "default")
		ref := func(name, uid, kind string) authenticationv1.TokenRequestSpec {
			return authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name, UID: p.UID + "x"}}
		}
		own := ref("other", "", "Pod")
		own.BoundObjectRef.UID = p.UID
		for name, tt := range map[string]struct {
			account string
			spec    authenticationv1.TokenRequestSpec
			want    string
		}{
			"too short":      {"robot", authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](599)}, "may not specify a duration less than 10 minutes"},
			"no account":     {"nobody", authenticationv1.TokenRequestSpec{}, "not found"},
			"no pod":         {"default", ref("absent", "", "Pod"), `pods "absent" not found`},
			"another's pod":  {"robot", own, "cannot bind token for serviceaccount"},
			"another UID":    {"default", ref("other", "", "Pod"), "does not match the UID in record"},
			"another's kind": {"default", ref("other", "", "Service"), "cannot bind token to object of type"},
		} {
			if _, err := ask(t, tt.account, tt.spec); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("bound to a pod", func(t *testing.T) {
		p := pod(t, "bound", "robot")
		token, err := ask(t, "robot", authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "bound", UID: p.UID}})
		if err != nil {
			t.Fatal(err)
		}
		u, err := who(token)
		if err != nil || u.Extra["authentication.kubernetes.io/pod-name"][0] != "bound" || u.Extra["authentication.kubernetes.io/node-name"][0] != "n1" {
			t.Errorf("%+v, %v", u, err)
		}
		if err := admin.CoreV1().Pods("default").Delete(ctx, "bound", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the token is invalid", func(context.Context) (bool, error) {
			_, err := who(token)
			return apierrors.IsUnauthorized(err), nil
		})
	})

	t.Run("a node's", func(t *testing.T) {
		p, q := pod(t, "mine", "robot"), newPod("theirs")
		q.Spec.ServiceAccountName, q.Spec.NodeName = "robot", "n2"
		q = createPod(t, admin, q)
		pair, err := cp.CA.Issue(pki.NodeClient("n1"))
		if err != nil {
			t.Fatal(err)
		}
		node := kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair))
		for name, tt := range map[string]struct {
			account string
			ref     *authenticationv1.BoundObjectReference
			want    string
		}{
			"own pod":              {"robot", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "mine", UID: p.UID}, ""},
			"not bound":            {"robot", nil, "node requested token not bound to a pod"},
			"without UID":          {"robot", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "mine"}, "node requested token with a pod binding without a uid"},
			"another node's pod":   {"robot", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "theirs", UID: q.UID}, "node requested token bound to a pod scheduled on a different node"},
			"an account of nobody": {"unused", &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "mine", UID: p.UID}, "no pod on node"},
		} {
			_, err := node.CoreV1().ServiceAccounts("default").CreateToken(ctx, tt.account, &authenticationv1.TokenRequest{
				Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: tt.ref}}, metav1.CreateOptions{})
			if tt.want == "" && err != nil || tt.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})

	t.Run("expiry and the account's end", func(t *testing.T) {
		token, err := ask(t, "robot", authenticationv1.TokenRequestSpec{})
		if err != nil {
			t.Fatal(err)
		}
		ahead.Store(int64(2 * time.Hour))
		if _, err := who(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("an expired token: %v", err)
		}
		ahead.Store(0)
		if err := accounts.Delete(ctx, "robot", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the token is invalid", func(context.Context) (bool, error) {
			_, err := who(token)
			return apierrors.IsUnauthorized(err), nil
		})
		// Another of the same name is another account.
		if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := who(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("a token of the account before: %v", err)
		}
	})
}

// TestAutomount looks at what a new pod gets of its service account.
func TestAutomount(t *testing.T) {
	admin := kubernetes.NewForConfigOrDie(apiservertest.StartWith(t, nil).Admin)
	for name, a := range map[string]*corev1.ServiceAccount{
		"none":   {AutomountServiceAccountToken: ptr.To(false)},
		"pulled": {ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}},
	} {
		a.Name = name
		if _, err := admin.CoreV1().ServiceAccounts("default").Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create := func(name, account string, automount *bool) *corev1.Pod {
		p := newPod(name)
		p.Spec.ServiceAccountName, p.Spec.AutomountServiceAccountToken = account, automount
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}}}
		p.Spec.Volumes = []corev1.Volume{{Name: "v"}}
		return createPod(t, admin, p)
	}
	for name, tt := range map[string]struct {
		account   string
		automount *bool
		want      bool
	}{
		"default":    {"", nil, true},
		"refused":    {"", ptr.To(false), false},
		"by account": {"none", nil, false},
		"by the pod": {"none", ptr.To(true), true},
	} {
		p := create("p-"+strings.ReplaceAll(name, " ", "-"), tt.account, tt.automount)
		mounts := p.Spec.Containers[0].VolumeMounts
		if got := len(mounts) > 0; got != tt.want || len(p.Spec.InitContainers[0].VolumeMounts) != 1 {
			t.Errorf("%s: %+v", name, p.Spec)
			continue
		}
		if !tt.want {
			continue
		}
		v := p.Spec.Volumes[len(p.Spec.Volumes)-1]
		if !strings.HasPrefix(v.Name, "kube-api-access-") || mounts[0].Name != v.Name || !mounts[0].ReadOnly || len(v.Projected.Sources) != 3 || *v.Projected.DefaultMode != 0o644 {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if p := create("pulls", "pulled", nil); len(p.Spec.ImagePullSecrets) != 1 {
		t.Errorf("the account's pull secrets: %+v", p.Spec.ImagePullSecrets)
	}
	p := newPod("stranger")
	p.Spec.ServiceAccountName = "stranger"
	if _, err := admin.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `error looking up service account default/stranger: serviceaccount "stranger" not found`) {
		t.Errorf("an account that does not exist: %v", err)
	}
}
