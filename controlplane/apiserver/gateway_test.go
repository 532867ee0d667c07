package apiserver_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

const gatewayManifests = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: gitk8s
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: front}]
  hostnames: [shop.example]
  rules:
  - backendRefs: [{name: web, port: 80}]
    retry: {attempts: 3}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls}
spec: {parentRefs: [{name: front}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: old}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}], to: [{group: "", kind: Service}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: new}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}], to: [{group: "", kind: Service}]}
`

// TestKubectlGateway works with the kinds of the Gateway API as with those of any
// cluster that has their definitions.
func TestKubectlGateway(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	for name, k := range kubectls(t, plane.Kubeconfig) {
		t.Run(name, func(t *testing.T) {
			for _, step := range []struct {
				args, stdin string
				want        []string
			}{
				{"apply -f -", gatewayManifests, []string{
					"gateway.gateway.networking.k8s.io/front ", "httproute.gateway.networking.k8s.io/web ",
					"spec.rules[0].retry: not acted on yet", "referencegrant.gateway.networking.k8s.io/old ",
				}},
				{"apply --server-side --force-conflicts -f -", gatewayManifests, []string{"gateway.gateway.networking.k8s.io/front serverside-applied"}},
				{"get gatewayclasses", "", []string{"NAME     CONTROLLER           ACCEPTED   AGE", "gitk8s   gitk8s.dev/gateway   Unknown"}},
				{"get gtw", "", []string{"NAME    CLASS    ADDRESS   PROGRAMMED   AGE", "front   gitk8s             Unknown"}},
				{"get httproutes,grpcroutes", "", []string{"HOSTNAMES", `["shop.example"]`, "grpcroute.gateway.networking.k8s.io/calls"}},
				{"get refgrant", "", []string{"old", "new"}},
				{"get referencegrants.v1beta1.gateway.networking.k8s.io new -o yaml", "", []string{"apiVersion: gateway.networking.k8s.io/v1beta1", "namespace: other"}},
				{"get gateway-api", "", []string{"gatewayclass.gateway.networking.k8s.io/gitk8s", "httproute.gateway.networking.k8s.io/web"}},
				{"get httproute web -o yaml", "", []string{"type: PathPrefix", "weight: 1"}},
				{"explain httproute.spec.rules.timeouts.backendRequest", "", []string{"KIND:       HTTPRoute", "FIELD: backendRequest <string>"}},
				{"describe gateway front", "", []string{"Gateway Class Name:  gitk8s", "Reason:                Pending"}},
				{"apply --dry-run=server -f -", strings.Replace(gatewayManifests, "port: 80, protocol: HTTP}]", "port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}]", 1), []string{
					`The Gateway "front" is invalid: spec.listeners: Invalid value: `, "Combination of port, protocol and hostname must be unique for each listener",
				}},
			} {
				out, _ := k(t.Context(), step.stdin, strings.Fields(step.args)...)
				for _, want := range step.want {
					if !strings.Contains(string(out), want) {
						t.Errorf("kubectl %s printed, without %q:\n%s", step.args, want, out)
					}
				}
			}
		})
	}
}

// TestGatewaySecrets: a worker reads the certificates of Gateways of our class, those
// of another namespace where that is granted, and no other Secret.
func TestGatewaySecrets(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	ctx := t.Context()
	admin, gateways := kubernetes.NewForConfigOrDie(plane.Admin), gatewayclient.NewForConfigOrDie(plane.Admin).GatewayV1()
	node := kubernetes.NewForConfigOrDie(plane.Server.ClientConfig(pki.UserNodePrefix+"one", pki.GroupNodes))
	for _, name := range []string{"shop", "vault"} {
		if _, err := admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"cert", "other", "foreign"} {
			if _, err := admin.CoreV1().Secrets(name).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secret}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	vault := gatewayv1.Namespace("vault")
	for class, refs := range map[string][]gatewayv1.SecretObjectReference{
		"gitk8s": {{Name: "cert"}, {Name: "cert", Namespace: &vault}}, "another": {{Name: "foreign"}},
	} {
		_, err := gateways.Gateways("shop").Create(ctx, &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: gatewayv1.GatewaySpec{
			GatewayClassName: gatewayv1.ObjectName(class),
			Listeners:        []gatewayv1.Listener{{Name: "https", Port: 443, Protocol: gatewayv1.HTTPSProtocolType, TLS: &gatewayv1.ListenerTLSConfig{CertificateRefs: refs}}},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	reads := func(namespace, name string) bool {
		_, err := node.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	become := func(namespace, name string, want bool) {
		t.Helper()
		for began := time.Now(); reads(namespace, name) != want; { // the server decides by what its caches have
			if time.Since(began) > 20*time.Second {
				t.Fatalf("Secret %s/%s is read: %v, want %v", namespace, name, !want, want)
			}
		}
	}
	become("shop", "cert", true)
	for _, s := range [][2]string{{"shop", "other"}, {"shop", "foreign"}, {"vault", "cert"}, {"vault", "other"}} {
		if reads(s[0], s[1]) {
			t.Errorf("Secret %s is read", s)
		}
	}
	name := gatewayv1.ObjectName("cert")
	grant := &gatewayv1.ReferenceGrant{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: gatewayv1.ReferenceGrantSpec{
		From: []gatewayv1.ReferenceGrantFrom{{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: "shop"}}, To: []gatewayv1.ReferenceGrantTo{{Kind: "Secret", Name: &name}},
	}}
	if _, err := gateways.ReferenceGrants("vault").Create(ctx, grant, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	become("vault", "cert", true)
	if reads("vault", "other") {
		t.Error("a Secret that is not granted is read")
	}
	if err := gateways.ReferenceGrants("vault").Delete(ctx, "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	become("vault", "cert", false)
}

// TestGatewayDefaults: reading an object with its defaults and writing it back changes
// nothing.
func TestGatewayDefaults(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	client := gatewayclient.NewForConfigOrDie(plane.Admin).GatewayV1()
	class, err := client.GatewayClasses().Get(t.Context(), "gitk8s", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The first time the status is written that it has until somebody says more.
	if class, err = client.GatewayClasses().Update(t.Context(), class, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	again, err := client.GatewayClasses().Update(t.Context(), class.DeepCopy(), metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := class.ResourceVersion, again.ResourceVersion; a != b {
		t.Errorf("written back it is another one:\n%+v\n%+v", class, again)
	}
}
