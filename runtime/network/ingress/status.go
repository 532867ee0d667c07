package ingress

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
)

// retryStatus is when a status that could not be written is tried again.
const retryStatus = 2 * time.Second

// Publisher writes into the status of Ingresses, Gateways and routes where they are
// reached and what is wrong with them, and tells of new problems by events. One in a cluster does.
type Publisher struct {
	client   kubernetes.Interface
	gateways gatewayclient.Interface
	events   record.EventRecorder

	mu        sync.Mutex
	table     *Table
	addresses []string
	told      map[Problem]bool
	wake      chan struct{}
}

// NewPublisher returns one that has nothing to say yet.
func NewPublisher(client kubernetes.Interface, gateways gatewayclient.Interface, events record.EventRecorder) *Publisher {
	return &Publisher{client: client, gateways: gateways, events: events, told: map[Problem]bool{}, wake: make(chan struct{}, 1)}
}

// SetTable gives it the newest table.
func (p *Publisher) SetTable(t *Table) {
	p.mu.Lock()
	p.table = t
	p.mu.Unlock()
	p.poke()
}

// SetAddresses says where Ingresses are reached.
func (p *Publisher) SetAddresses(all []string) {
	p.mu.Lock()
	same := slices.Equal(p.addresses, all)
	p.addresses = slices.Clone(all)
	p.mu.Unlock()
	if !same {
		p.poke()
	}
}

func (p *Publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-retry:
		}
		retry = nil
		if err := p.publish(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("write the status of Ingresses and Gateways, will retry", "error", err)
			retry = time.After(retryStatus)
		}
	}
}

func (p *Publisher) publish(ctx context.Context) error {
	p.mu.Lock()
	t, addresses := p.table, p.addresses
	p.mu.Unlock()
	if t == nil {
		return nil
	}
	p.tell(t)
	for _, ing := range t.ingresses {
		want := statusOf(ing, addresses, t.Problems)
		if equality.Semantic.DeepEqual(want, ing.Status) {
			continue
		}
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": want.LoadBalancer.Ingress}}})
		if err != nil {
			return err
		}
		if _, err := p.client.NetworkingV1().Ingresses(ing.Namespace).Patch(ctx, ing.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			return fmt.Errorf("%s: %w", nameOf(ing), err)
		}
	}
	return publishGateways(ctx, p.gateways, &t.status, addresses)
}

// tell makes an event of each problem that was not there before.
func (p *Publisher) tell(t *Table) {
	now := map[Problem]bool{}
	for _, problem := range t.Problems {
		now[problem] = true
		if p.told[problem] {
			continue
		}
		for _, ing := range t.ingresses {
			if nameOf(ing) == problem.Ingress {
				p.events.Event(ing, corev1.EventTypeWarning, problem.Reason, problem.Message)
			}
		}
	}
	p.told = now
}

// statusOf is what an Ingress' status says: an address for each that serves it, and at
// its ports what is wrong.
func statusOf(ing *networkingv1.Ingress, addresses []string, problems []Problem) networkingv1.IngressStatus {
	ports := []networkingv1.IngressPortStatus{{Port: 80, Protocol: corev1.ProtocolTCP}}
	if len(ing.Spec.TLS) > 0 {
		ports = append(ports, networkingv1.IngressPortStatus{Port: 443, Protocol: corev1.ProtocolTCP})
	}
	for _, problem := range problems {
		if problem.Ingress != nameOf(ing) {
			continue
		}
		reason := "gitk8s.dev/" + problem.Reason
		for i := range ports {
			if (problem.Reason != InvalidCertificate || ports[i].Port == 443) && ports[i].Error == nil {
				ports[i].Error = &reason
			}
		}
	}
	var out networkingv1.IngressStatus
	for _, a := range addresses {
		out.LoadBalancer.Ingress = append(out.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: a, Ports: ports})
	}
	return out
}
