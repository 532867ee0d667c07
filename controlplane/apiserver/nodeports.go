package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The range of node ports.
const (
	nodePortPrefix = "/gitk8s/nodeports"
	firstNodePort  = 30000
	lastNodePort   = 32767
)

var (
	errPortTaken      = errors.New("provided port is already allocated")
	errPortOutOfRange = errors.New("provided port is not in the valid range")
)

// nodePorts hands out the ports at which services are reached on every node. A port
// belongs to one service, by whatever protocols.
type nodePorts struct {
	ownership
	first, last int32
}

func newNodePorts(client *clientv3.Client, now func() time.Time) *nodePorts {
	return &nodePorts{ownership{client: client, prefix: nodePortPrefix, what: "node port", now: now}, firstNodePort, lastNodePort}
}

func (n *nodePorts) size() int32 { return n.last - n.first + 1 }

// static is the number of ports at the lower end that are left to who asks for one by
// number, as long as the others last (KEP-3668, reserve NodePort ranges for dynamic
// and static allocation).
func (n *nodePorts) static() int32 { return min(max(16, n.size()/32), 128) }

func (n *nodePorts) inRange(port int32) error {
	if port < n.first || port > n.last {
		return fmt.Errorf("%w. The range of valid ports is %d-%d", errPortOutOfRange, n.first, n.last)
	}
	return nil
}

// reserve takes a port by number. taken is false for one that the owner has already.
func (n *nodePorts) reserve(ctx context.Context, port int32, owner string) (taken bool, err error) {
	if err := n.inRange(port); err != nil {
		return false, err
	}
	if taken, err = n.take(ctx, strconv.Itoa(int(port)), owner); taken || err != nil {
		return taken, err
	}
	return false, n.check(ctx, port, owner)
}

// check tells whether a port is free or the owner's.
func (n *nodePorts) check(ctx context.Context, port int32, owner string) error {
	if err := n.inRange(port); err != nil {
		return err
	}
	has, err := n.owner(ctx, strconv.Itoa(int(port)))
	if err == nil && has != owner && has != "" {
		err = errPortTaken
	}
	return err
}

// any takes a free port.
func (n *nodePorts) any(ctx context.Context, owner string) (int32, error) {
	for range randomAttempts {
		port := n.first + n.static() + rand.Int32N(n.size()-n.static())
		if ok, err := n.take(ctx, strconv.Itoa(int(port)), owner); ok || err != nil {
			return port, err
		}
	}
	taken, err := n.all(ctx)
	if err != nil {
		return 0, err
	}
	for i := range n.size() {
		port := n.first + (n.static()+i)%n.size() // the lower end comes last
		name := strconv.Itoa(int(port))
		if _, ok := taken[name]; ok {
			continue
		}
		if ok, err := n.take(ctx, name, owner); ok || err != nil {
			return port, err
		}
	}
	return 0, errExhausted
}
