package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

const (
	// loadRate of requests a second, whatever becomes of those before: every second one
	// is on a connection that is kept, and the others have one each.
	loadRate = 2000
	// loadBefore is how long the load has been there when an update begins.
	loadBefore = time.Second
)

// underLoad measures what clients see of a rolling update.
func (b *bench) underLoad(ctx context.Context, c *cluster) error {
	in, end, err := enter(c.workerNetNS())
	if err != nil {
		return err
	}
	defer end()
	if err := c.reusePorts(); err != nil {
		return err
	}
	svc, err := c.loaded(ctx)
	if err != nil {
		return err
	}
	update := 0
	for _, to := range []way{
		{what: "the node's Ingress", address: net.JoinHostPort(floorRanges.Node(1)[0].String(), "80")},
		{what: "a ClusterIP", address: net.JoinHostPort(svc.Spec.ClusterIP, "8080")},
	} {
		for _, linger := range []string{"0s", "1s"} {
			update++
			if err := c.updateLoaded(ctx, linger, fmt.Sprint(update)); err != nil { // the pods that go are like this
				return err
			}
			if err := c.othersGone(ctx, "load"); err != nil {
				return err
			}
			l := &load{in: in, address: to.address}
			update++
			if err := l.during(ctx, func() error { return c.updateLoaded(ctx, linger, fmt.Sprint(update)) }); err != nil {
				return err
			}
			kind := map[string]string{"0s": "take no new connections once they are told to end", "1s": "serve for another second"}[linger]
			b.add(row{
				what:   fmt.Sprintf("rolling update of %d replicas that %s, under %d requests/s by %s", rolloutReplicas, kind, loadRate, to.what),
				figure: l.String(), aim: "0 failed",
			})
		}
	}
	background := metav1.DeletePropagationBackground
	return errors.Join(c.AppsV1().Deployments(namespace).Delete(ctx, "load", metav1.DeleteOptions{PropagationPolicy: &background}),
		c.NetworkingV1().Ingresses(namespace).Delete(ctx, "load", metav1.DeleteOptions{}), c.CoreV1().Services(namespace).Delete(ctx, "load", metav1.DeleteOptions{}))
}

// loaded makes the Deployment with its service and its Ingress.
func (c *cluster) loaded(ctx context.Context) (*corev1.Service, error) {
	labels := map[string]string{"app": "load"}
	surge, unavailable := intstr.FromInt32(1), intstr.FromInt32(0)
	_, err := c.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "load"}, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](rolloutReplicas), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "web", Image: image("v1"), Env: []corev1.EnvVar{{Name: "LINGER", Value: "0s"}}, ReadinessProbe: &corev1.Probe{
				PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)}},
			},
		}}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	svc, err := c.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "load"}, Spec: corev1.ServiceSpec{
		Selector: labels, Ports: []corev1.ServicePort{{Port: 8080}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	_, err = c.NetworkingV1().Ingresses(namespace).Create(ctx, &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "load"}, Spec: networkingv1.IngressSpec{
		DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "load", Port: networkingv1.ServiceBackendPort{Number: 8080}}},
	}}, metav1.CreateOptions{})
	return svc, err
}

// updateLoaded replaces all pods and waits until that is complete.
func (c *cluster) updateLoaded(ctx context.Context, linger, version string) error {
	w, err := c.AppsV1().Deployments(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=load"})
	if err != nil {
		return err
	}
	defer w.Stop()
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"LINGER","value":%q},{"name":"UPDATE","value":%q}]}]}}}}`, linger, version)
	d, err := c.AppsV1().Deployments(namespace).Patch(ctx, "load", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	_, err = until(ctx, w, "the update is complete", func(ev watch.Event) bool {
		now, ok := ev.Object.(*appsv1.Deployment)
		return ok && now.Generation >= d.Generation && complete(now)
	})
	return err
}

// othersGone waits until the pods of former templates are gone.
func (c *cluster) othersGone(ctx context.Context, app string) error {
	w, err := c.watchPods(ctx, app)
	if err != nil {
		return err
	}
	defer w.Stop()
	there := map[string]bool{}
	pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		there[pods.Items[i].Name] = true
	}
	if len(there) == rolloutReplicas {
		return nil
	}
	_, err = until(ctx, w, "the pods of former templates are gone", func(ev watch.Event) bool {
		if p, ok := ev.Object.(*corev1.Pod); ok && ev.Type == watch.Deleted {
			delete(there, p.Name)
		}
		return len(there) == rolloutReplicas
	})
	return err
}

// load is a stream of requests that does not wait for answers.
type load struct {
	in      *inside
	address string

	mu     sync.Mutex
	idle   []*kept // those that were used last are used first
	took   sample
	failed map[string]int
	again  atomic.Int64 // requests that were repeated, since the server had closed a kept connection
}

type kept struct {
	net.Conn
	r *bufio.Reader
}

// during sends requests from a while before f to its end.
func (l *load) during(ctx context.Context, f func() error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	l.failed = map[string]int{}
	var wg sync.WaitGroup
	wg.Go(func() {
		began := time.Now()
		for n := 0; ctx.Err() == nil; n++ {
			due := began.Add(time.Duration(n) * time.Second / loadRate)
			time.Sleep(time.Until(due))
			wg.Go(func() {
				err := l.one(n%2 == 0)
				l.mu.Lock()
				defer l.mu.Unlock()
				if err != nil {
					l.failed[reason(err)]++
					return
				}
				l.took = append(l.took, time.Since(due))
			})
		}
	})
	time.Sleep(loadBefore)
	err := f()
	stop()
	wg.Wait()
	for _, k := range l.idle {
		_ = k.Close()
	}
	return err
}

// one is one request. Any client repeats one that finds its connection closed by the
// server before anything of an answer came.
func (l *load) one(keep bool) error {
	if keep {
		if k := l.take(); k != nil {
			err := l.exchange(k, keep)
			if err == nil || k.r.Buffered() > 0 {
				return err
			}
			l.again.Add(1)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := l.in.dial(ctx, "tcp", l.address)
	if err != nil {
		return err
	}
	return l.exchange(&kept{conn, bufio.NewReader(conn)}, keep)
}

func (l *load) take() *kept {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) == 0 {
		return nil
	}
	k := l.idle[len(l.idle)-1]
	l.idle = l.idle[:len(l.idle)-1]
	return k
}

func (l *load) exchange(k *kept, keep bool) error {
	err := k.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = exchangeOK(k)
	}
	if err != nil || !keep {
		_ = k.Close()
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle = append(l.idle, k)
	return nil
}

// exchangeOK is a request whose answer must be good.
func exchangeOK(k *kept) error {
	if _, err := k.Write([]byte("GET / HTTP/1.1\r\nHost: bench\r\n\r\n")); err != nil {
		return err
	}
	status, err := k.r.ReadString('\n')
	if err != nil {
		return err
	}
	for {
		line, err := k.r.ReadString('\n')
		switch {
		case err != nil:
			return err
		case line == "\r\n" && !strings.Contains(status, " 200 "):
			return errors.New(strings.TrimSpace(status))
		case line == "\r\n":
			return nil
		}
	}
}

// reason is an error without what differs from one connection to the next.
func reason(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// String is the figure.
func (l *load) String() string {
	failed := 0
	var why []string
	for reason, n := range l.failed {
		failed += n
		why = append(why, fmt.Sprintf("%d × %s", n, reason))
	}
	slices.Sort(why)
	text := fmt.Sprintf("%d of %d failed", failed, failed+len(l.took))
	if failed > 0 {
		text += " (" + strings.Join(why, ", ") + ")"
	}
	return fmt.Sprintf("%s, %d asked again on a new connection, p50 %s, p99 %s", text, l.again.Load(), show(l.took.at(0.5)), show(l.took.at(0.99)))
}
