package apiserver_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestServicesOfBothFamilies: whatever services are made, changed and deleted, no address
// is ever given to two, and what is taken in the store is what they have. The ranges are
// so small that they run full.
func TestServicesOfBothFamilies(t *testing.T) {
	var etcd *clientv3.Client
	ranges := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/28"), netip.MustParsePrefix("fd00:9::/124")}
	cp := apiservertest.StartWith(t, func(c *apiserver.Config) { c.ServiceCIDRs, etcd = ranges, c.Etcd })
	client := kubernetes.NewForConfigOrDie(cp.Admin)
	dns, err := client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil || !slices.Equal(dns.Spec.ClusterIPs, []string{"10.9.0.10", "fd00:9::a"}) || *dns.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyRequireDualStack {
		t.Fatalf("the name server's service: %+v %v", dns.Spec, err)
	}
	api, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || !slices.Equal(api.Spec.ClusterIPs, []string{"10.9.0.1"}) {
		t.Fatalf("the API's service: %+v %v", api.Spec, err)
	}
	services := client.CoreV1().Services("default")
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	refused := map[metav1.StatusReason]int{}
	for i := range 500 {
		name := fmt.Sprint("s", random.IntN(24))
		dry := metav1.CreateOptions{}
		if random.IntN(10) == 0 {
			dry.DryRun = []string{metav1.DryRunAll}
		}
		switch random.IntN(4) {
		case 0, 1:
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}}}
			if p := pick("", "SingleStack", "PreferDualStack", "RequireDualStack"); p != "" {
				svc.Spec.IPFamilyPolicy = (*corev1.IPFamilyPolicy)(&p)
			}
			if f := pick("", "", "IPv4", "IPv6"); f != "" {
				svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPFamily(f)}
			}
			if random.IntN(4) == 0 {
				svc.Spec.ClusterIP = pick("10.9.0.4", "fd00:9::4", "None")
			}
			_, err = services.Create(t.Context(), svc, dry)
		case 2:
			change := pick(`{"ipFamilyPolicy":"SingleStack"}`, `{"ipFamilyPolicy":"PreferDualStack"}`, `{"ipFamilyPolicy":"RequireDualStack"}`,
				`{"type":"ExternalName","externalName":"a.b"}`, `{"type":"ClusterIP"}`, `{"clusterIPs":["10.9.0.5","fd00:9::5"],"clusterIP":"10.9.0.5","ipFamilyPolicy":"PreferDualStack"}`)
			_, err = services.Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":`+change+`}`), metav1.PatchOptions{DryRun: dry.DryRun})
		default:
			err = services.Delete(t.Context(), name, metav1.DeleteOptions{DryRun: dry.DryRun})
		}
		switch reason := apierrors.ReasonForError(err); reason {
		case metav1.StatusReasonInvalid, metav1.StatusReasonNotFound, metav1.StatusReasonAlreadyExists:
			refused[reason]++
		case metav1.StatusReasonInternalError:
			if !strings.Contains(err.Error(), "range is full") {
				t.Fatal(err)
			}
			refused[reason]++
		default:
			if err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 || i == 499 {
			checkAddresses(t, client, etcd, ranges)
		}
	}
	if refused[metav1.StatusReasonInternalError] == 0 || refused[metav1.StatusReasonInvalid] == 0 {
		t.Errorf("no range was full, or no service invalid: %v", refused)
	}
}

func checkAddresses(t *testing.T, client kubernetes.Interface, etcd *clientv3.Client, ranges []netip.Prefix) {
	t.Helper()
	all, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]string{}
	for _, s := range all.Items {
		if s.Spec.Type == corev1.ServiceTypeExternalName {
			if len(s.Spec.ClusterIPs) > 0 || s.Spec.IPFamilyPolicy != nil {
				t.Errorf("%s: %+v", s.Name, s.Spec)
			}
			continue
		}
		if s.Spec.ClusterIP == corev1.ClusterIPNone {
			continue
		}
		if len(s.Spec.ClusterIPs) != len(s.Spec.IPFamilies) || s.Spec.ClusterIPs[0] != s.Spec.ClusterIP {
			t.Fatalf("%s has %v of %v", s.Name, s.Spec.ClusterIPs, s.Spec.IPFamilies)
		}
		for i, ip := range s.Spec.ClusterIPs {
			a := netip.MustParseAddr(ip)
			if a.Is6() != (s.Spec.IPFamilies[i] == corev1.IPv6Protocol) || !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
				t.Errorf("%s has %v of %v", s.Name, s.Spec.ClusterIPs, s.Spec.IPFamilies)
			}
			if other := has[ip]; other != "" {
				t.Errorf("%s has the address %s, and so has %s", s.Name, ip, other)
			}
			has[ip] = s.Namespace + "/" + s.Name + "/" + string(s.UID)
		}
	}
	resp, err := etcd.Get(t.Context(), "/gitk8s/clusterips/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]string{}
	for _, kv := range resp.Kvs {
		taken[path.Base(string(kv.Key))], _, _ = strings.Cut(string(kv.Value), " ")
	}
	if !maps.Equal(taken, has) {
		t.Fatalf("taken: %v\nservices have: %v", taken, has)
	}
}
