package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	statefulSetsGVR = appsv1.SchemeGroupVersion.WithResource("statefulsets")
	claimsGVR       = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
)

// running waits until exactly the named pods are Ready, each with its image; "a=v1".
func (c *cluster) running(t *testing.T, ns, selector string, want ...string) []*corev1.Pod {
	t.Helper()
	pods := c.awaitPods(t, ns, selector, fmt.Sprintf("they are %q", want), func(pods []*corev1.Pod) bool {
		var have []string
		for _, p := range pods {
			if ready(p) {
				_, tag, _ := strings.Cut(p.Spec.Containers[0].Image, ":")
				have = append(have, p.Name+"="+tag)
			}
		}
		slices.Sort(have)
		return len(pods) == len(want) && slices.Equal(have, want)
	})
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
}

// TestStatefulSet: pods with names and an order, updated by partition, and back.
func TestStatefulSet(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "statefulset")
	k := kubectls(c)["own"].in(ns)
	c.apply(t, ns, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, annotations: {kubernetes.io/change-cause: the first}}
spec:
  replicas: 3
  serviceName: dbs
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: db, image: "gitk8s.local/test/web:v1", readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}
`)
	pods := c.running(t, ns, "app=db", "db-0=v1", "db-1=v1", "db-2=v1")
	for i, p := range pods {
		if p.Spec.Hostname != p.Name || p.Spec.Subdomain != "dbs" || p.Labels[appsv1.PodIndexLabel] != fmt.Sprint(i) {
			t.Errorf("%s is %s.%s with labels %v", p.Name, p.Spec.Hostname, p.Spec.Subdomain, p.Labels)
		}
		if i > 0 && p.CreationTimestamp.Time.Before(readyTime(pods[i-1])) {
			t.Errorf("%s was created at %s, before %s was ready at %s", p.Name, p.CreationTimestamp, pods[i-1].Name, readyTime(pods[i-1]))
		}
	}
	if got := k.run(t, "exec", "db-1", "--", "/server", "env"); !strings.Contains(got, "HOSTNAME=db-1") {
		t.Errorf("the pod does not know its name: %s", got)
	}
	contains(t, k.run(t, "get", "statefulsets"), "NAME   READY   AGE", "db     3/3")

	k.run(t, "patch", "statefulset", "db", "-p", `{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}`)
	k.run(t, "annotate", "statefulset", "db", "kubernetes.io/change-cause=the second", "--overwrite")
	k.run(t, "set", "image", "statefulset/db", "db=gitk8s.local/test/web:v2")
	contains(t, k.run(t, "rollout", "status", "statefulset/db", "--timeout=45s"), "partitioned roll out complete: 1 new pods")
	kept := c.running(t, ns, "app=db", "db-0=v1", "db-1=v1", "db-2=v2")
	if kept[0].UID != pods[0].UID || kept[1].UID != pods[1].UID {
		t.Error("pods below the partition were replaced")
	}
	k.run(t, "patch", "statefulset", "db", "-p", `{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}`)
	c.running(t, ns, "app=db", "db-0=v2", "db-1=v2", "db-2=v2")
	contains(t, k.run(t, "rollout", "history", "statefulset/db"), "1         the first", "2         the second")
	contains(t, k.run(t, "rollout", "history", "statefulset/db", "--revision=1"), "gitk8s.local/test/web:v1")

	k.run(t, "rollout", "undo", "statefulset/db", "--to-revision=1")
	c.running(t, ns, "app=db", "db-0=v1", "db-1=v1", "db-2=v1")
	lacks(t, k.run(t, "rollout", "history", "statefulset/db"), "1         the first")
	contains(t, k.run(t, "rollout", "history", "statefulset/db"), "3         the first")
	contains(t, k.run(t, "rollout", "undo", "statefulset/db", "--to-revision=3"), "skipped rollback")
	await(t, c, statefulSetsGVR, ns, "db", "the update is complete", func(s *appsv1.StatefulSet) bool {
		return s.Status.CurrentRevision == s.Status.UpdateRevision && s.Status.CurrentReplicas == 3
	})
	k.run(t, "rollout", "restart", "statefulset/db")
	k.run(t, "rollout", "status", "statefulset/db", "--timeout=45s")
	for _, p := range c.running(t, ns, "app=db", "db-0=v1", "db-1=v1", "db-2=v1") {
		if p.Annotations["kubectl.kubernetes.io/restartedAt"] == "" {
			t.Errorf("%s was not restarted", p.Name)
		}
	}
	k.run(t, "scale", "statefulset/db", "--replicas=1")
	c.running(t, ns, "app=db", "db-0=v1")
	contains(t, k.run(t, "describe", "statefulset", "db"), "create Pod db-0 in StatefulSet db successful", "delete Pod db-2 in StatefulSet db successful")
}

func readyTime(p *corev1.Pod) (at time.Time) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.LastTransitionTime.Time
		}
	}
	return at
}

// TestStatefulSetClaims: each pod has a claim of its own, which goes with the set
// if that is asked for.
func TestStatefulSetClaims(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "claims")
	set := func(name, policy string) {
		c.apply(t, ns, `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: `+name+`}
spec:
  podManagementPolicy: Parallel
  replicas: 2
  selector: {matchLabels: {app: `+name+`}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: `+policy+`}
  template:
    metadata: {labels: {app: `+name+`}}
    spec:
      nodeSelector: {nowhere: "yes"}
      containers: [{name: c, image: "gitk8s.local/test/web:v1", volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]
`)
	}
	pending := func(claim *corev1.PersistentVolumeClaim) bool { return claim.Status.Phase == corev1.ClaimPending }
	set("kept", "Retain")
	set("gone", "Delete")
	for _, name := range []string{"data-kept-0", "data-kept-1", "data-gone-0", "data-gone-1"} {
		await(t, c, claimsGVR, ns, name, "it is Pending", pending)
	}
	p := c.awaitPod(t, ns, "kept-1", "it exists", func(*corev1.Pod) bool { return true })
	if v := p.Spec.Volumes[0]; v.PersistentVolumeClaim == nil || v.PersistentVolumeClaim.ClaimName != "data-kept-1" {
		t.Errorf("volume %+v", v)
	}
	c.kubectl(t, "-n", ns, "delete", "statefulset", "kept", "gone")
	awaitGone(t, c, claimsGVR, ns, "data-gone-0")
	awaitGone(t, c, claimsGVR, ns, "data-gone-1")
	await(t, c, claimsGVR, ns, "data-kept-0", "it is retained", pending)
}

// TestDaemonSet: one pod on every node that is selected, updated and back.
func TestDaemonSet(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "daemonset")
	k := kubectls(c)["own"].in(ns)
	const label = "gitk8s.test/daemon"
	t.Cleanup(func() { c.run("kubectl", "label", "nodes", "--all", label+"-") })
	c.kubectl(t, "label", "nodes", "--all", label+"=yes")
	c.apply(t, ns, `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      nodeSelector: {`+label+`: "yes"}
      containers: [{name: agent, image: "gitk8s.local/test/web:v1"}]
`)
	on := func(tag string, want ...string) {
		t.Helper()
		c.awaitPods(t, ns, "app=agent", fmt.Sprintf("%s runs on %q", tag, want), func(pods []*corev1.Pod) bool {
			var have []string
			for _, p := range pods {
				if ready(p) && strings.HasSuffix(p.Spec.Containers[0].Image, ":"+tag) {
					have = append(have, p.Spec.NodeName)
				}
			}
			slices.Sort(have)
			return len(pods) == len(want) && slices.Equal(have, want)
		})
	}
	on("v1", "worker-1", "worker-2")
	k.run(t, "rollout", "status", "daemonset/agent", "--timeout=45s")
	contains(t, k.run(t, "get", "daemonsets"), "DESIRED", "NODE SELECTOR", "agent   2         2         2       2            2")

	c.kubectl(t, "label", "node", "worker-2", label+"-")
	on("v1", "worker-1")
	c.kubectl(t, "label", "node", "worker-2", label+"=yes")
	on("v1", "worker-1", "worker-2")

	affinity := func(to string) {
		k.run(t, "patch", "daemonset", "agent", "--type=merge", "-p", `{"spec":{"template":{"spec":{"affinity":`+to+`}}}}`)
	}
	affinity(`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"NotIn","values":["worker-1"]}]}]}}}`)
	on("v1", "worker-2")
	affinity("null")
	on("v1", "worker-1", "worker-2")

	k.run(t, "set", "image", "daemonset/agent", "agent=gitk8s.local/test/web:v2")
	k.run(t, "rollout", "status", "daemonset/agent", "--timeout=45s")
	on("v2", "worker-1", "worker-2")
	contains(t, k.run(t, "rollout", "history", "daemonset/agent"), "2 ", "3 ", "4 ") // the first is that of the third again
	k.run(t, "rollout", "undo", "daemonset/agent")
	k.run(t, "rollout", "status", "daemonset/agent", "--timeout=45s")
	on("v1", "worker-1", "worker-2")
	contains(t, k.run(t, "rollout", "history", "daemonset/agent"), "5 ")

	k.run(t, "patch", "daemonset", "agent", "-p", `{"spec":{"updateStrategy":{"rollingUpdate":{"maxUnavailable":0,"maxSurge":"50%"}}}}`)
	k.run(t, "rollout", "restart", "daemonset/agent")
	k.run(t, "rollout", "status", "daemonset/agent", "--timeout=45s")
	on("v1", "worker-1", "worker-2")
	if r := k.try("", "drain", "worker-1", "--dry-run=client", "--pod-selector=app=agent"); !strings.Contains(r.stderr, "cannot delete DaemonSet-managed Pods") {
		t.Errorf("drain should know the pods of a DaemonSet: %s", r)
	}
	contains(t, k.run(t, "describe", "daemonset", "agent"), "SuccessfulCreate", "SuccessfulDelete")
	k.run(t, "delete", "daemonset", "agent")
	on("v1")
	if _, err := c.k.AppsV1().DaemonSets(ns).Get(t.Context(), "agent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deleted DaemonSet: %v", err)
	}
}

// TestOnDelete: what a set has of an old template stays until somebody deletes it. With
// RollingUpdate, no more than maxUnavailable pods are replaced before those are ready.
func TestOnDelete(t *testing.T) {
	t.Parallel()
	c := suite.shared
	for _, kind := range []string{"StatefulSet", "DaemonSet"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			onDelete(t, c, c.namespace(t, "ondelete-"+strings.ToLower(kind)), kind)
		})
	}
}

func onDelete(t *testing.T, c *cluster, ns, kind string) {
	k := kubectls(c)["own"].in(ns)
	name := strings.ToLower(kind) + "/web"
	spec, old := "revisionHistoryLimit: 0", "{.status.numberReady}"
	if kind == "StatefulSet" {
		spec, old = spec+"\n  podManagementPolicy: Parallel\n  replicas: 2", "{.status.currentReplicas}"
	}
	c.apply(t, ns, `apiVersion: apps/v1
kind: `+kind+`
metadata: {name: web}
spec:
  `+spec+`
  updateStrategy: {type: OnDelete}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "gitk8s.local/test/web:v1", readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]
`)
	// tagged sorts the pods into those that are ready, and not, by the tag of their image.
	tagged := func(pods []*corev1.Pod) (out string) {
		var have []string
		for _, p := range pods {
			_, tag, _ := strings.Cut(p.Spec.Containers[0].Image, ":")
			if !ready(p) {
				tag += "-"
			}
			have = append(have, tag)
		}
		slices.Sort(have)
		return strings.Join(have, " ")
	}
	are := func(want string) []*corev1.Pod {
		t.Helper()
		return c.awaitPods(t, ns, "app=web", "they are "+want, func(pods []*corev1.Pod) bool { return tagged(pods) == want })
	}
	first := are("v1 v1")
	k.run(t, "set", "image", name, "web=gitk8s.local/test/web:v2")
	generation := k.run(t, "get", name, "-o", "jsonpath={.metadata.generation}")
	k.run(t, "wait", "--for=jsonpath={.status.observedGeneration}="+generation, name, "--timeout=45s")
	k.run(t, "wait", "--for=jsonpath="+old+"=2", name, "--timeout=45s")
	for _, p := range are("v1 v1") {
		if !slices.ContainsFunc(first, func(f *corev1.Pod) bool { return f.UID == p.UID }) {
			t.Errorf("%s was replaced", p.Name)
		}
	}
	k.run(t, "delete", "pod", first[0].Name)
	second := are("v1 v2")
	if !slices.ContainsFunc(second, func(p *corev1.Pod) bool { return p.UID == first[1].UID }) {
		t.Errorf("%s was replaced", first[1].Name)
	}
	k.run(t, "delete", "pod", first[1].Name)
	are("v2 v2")
	// v3 never becomes ready.
	k.run(t, "patch", name, "-p", `{"spec":{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"maxUnavailable":1}}}}`)
	k.run(t, "set", "image", name, "web=gitk8s.local/test/web:v3")
	are("v2 v3-")
	k.run(t, "patch", name, "-p", `{"spec":{"updateStrategy":{"rollingUpdate":{"maxUnavailable":2}}}}`)
	are("v3- v3-")
	eventually(t, "no more of the history is kept than was asked for", func() error {
		if out := k.run(t, "rollout", "history", name); strings.Contains(out, "\n1 ") || !strings.Contains(out, "\n3 ") {
			return errors.New(out)
		}
		return nil
	})
}
