package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// setClock moves the machine's clock.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	tv := unix.NsecToTimeval(time.Now().Add(by).UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		t.Fatal(err)
	}
}

// TestClock puts the machine's clock forward and back: nobody is restarted or moved,
// and everything goes on. It runs on a virtual machine (`make test-clock`), for its
// clock is everybody's.
func TestClock(t *testing.T) {
	if os.Getenv("GITK8S_E2E_CLOCK") == "" {
		t.Skip("it sets the machine's clock; `make test-clock` runs it on a virtual machine")
	}
	patience = 5 * time.Minute // the machine is emulated
	c := suite.shared
	ns := c.namespace(t, "clock")
	everyMinute := batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "minutely"},
		Spec: batchv1.CronJobSpec{Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: testImage, Args: []string{"exit", "0"}}},
		}}}}},
	}
	if _, err := c.k.BatchV1().CronJobs(ns).Create(t.Context(), &everyMinute, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt(8080)}}, PeriodSeconds: 5, TimeoutSeconds: 30, FailureThreshold: 5}
	run := func(name string) *corev1.Pod {
		t.Helper()
		pod := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "main", Image: testImage, LivenessProbe: probe, ReadinessProbe: probe,
			}}},
		}
		if _, err := c.k.CoreV1().Pods(ns).Create(t.Context(), &pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		return c.awaitPod(t, ns, name, "it is Ready", ready)
	}
	first := run("first")
	readySince := map[string]metav1.Time{}
	for _, name := range []string{"worker-1", "worker-2"} {
		readySince[name] = readyCondition(await(t, c, nodesGVR, "", name, "it is Ready", nodeReady)).LastTransitionTime
	}
	for i, by := range []time.Duration{3 * time.Hour, -2 * time.Hour, -50 * time.Minute} {
		setClock(t, by)
		jumped := time.Now()
		t.Logf("the clock was put by %s, to %s", by, jumped)
		run(fmt.Sprintf("after-%d", i)) // scheduler, worker, probes
		for name, since := range readySince {
			eventually(t, "the node is heard of at the new time", func() error {
				l, err := c.k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if age := l.Spec.RenewTime.Sub(jumped); age < 0 || age > 10*time.Minute {
					return fmt.Errorf("renewed at %s", l.Spec.RenewTime)
				}
				return nil
			})
			if n := await(t, c, nodesGVR, "", name, "it is Ready", nodeReady); readyCondition(n).LastTransitionTime != since {
				t.Errorf("%s was not Ready meanwhile: %v", name, readyCondition(n))
			}
		}
		eventually(t, "the pod's token is good", func() error { return c.whoami(t, ns, "first") })
		if by < 0 {
			continue // what was run at times that are to come again is not run twice
		}
		eventually(t, "the CronJob runs", func() error {
			jobs, err := c.k.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(jobs.Items, func(j batchv1.Job) bool {
				done := j.Status.CompletionTime
				return done != nil && done.After(jumped.Add(-time.Second)) && done.Before(&metav1.Time{Time: jumped.Add(10 * time.Minute)})
			}) {
				return fmt.Errorf("%d Jobs, none of them ran since", len(jobs.Items))
			}
			return nil
		})
	}
	if now := c.awaitPod(t, ns, "first", "it is Ready", ready); lifeOf(now) != lifeOf(first) {
		t.Errorf("the container changed: %+v, before %+v", lifeOf(now), lifeOf(first))
	}
}

func readyCondition(n *corev1.Node) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// whoami has a pod ask the API who it is.
func (c *cluster) whoami(t *testing.T, ns, pod string) error {
	req := c.k.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"/server", "whoami"}, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	exec, err := remotecommand.NewWebSocketExecutor(c.rest, "GET", req.URL().String())
	if err != nil {
		return err
	}
	var out, errs strings.Builder
	if err := exec.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return errors.Join(err, errors.New(errs.String()))
	}
	if !strings.Contains(out.String(), "system:serviceaccount:"+ns+":default") {
		return errors.New(out.String())
	}
	return nil
}
