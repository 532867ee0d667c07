package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// addresses hands out the addresses of services. Each one taken is a key in etcd,
// made in a transaction that fails when it is there: two servers on one etcd
// cannot give the same address twice, and nothing has to be rebuilt on restart.
type addresses struct {
	client *clientv3.Client
	prefix string
	cidr   netip.Prefix
	now    func() time.Time
}

const (
	addressPrefix = "/gitk8s/clusterips"
	// attempts at random addresses before looking at all of them.
	randomAttempts = 16
	// orphanAge is how old a key without a service must be to be removed: longer
	// than any request that might be about to create the service.
	orphanAge = 5 * time.Minute
)

var (
	errTaken      = errors.New("provided IP is already allocated")
	errOutOfRange = errors.New("the provided IP is not in the valid range")
	errExhausted  = errors.New("range is full")
)

func newAddresses(client *clientv3.Client, cidr netip.Prefix, now func() time.Time) (*addresses, error) {
	if !cidr.Addr().Is4() || cidr.Bits() > 30 {
		return nil, fmt.Errorf("apiserver: the service network %s must be IPv4 with at least 2 host bits", cidr)
	}
	return &addresses{client: client, prefix: addressPrefix, cidr: cidr.Masked(), now: now}, nil
}

// size is the number of addresses without the network's own and the last one.
func (a *addresses) size() uint32 { return 1<<(32-a.cidr.Bits()) - 2 }

// at returns the i-th address, from 0.
func (a *addresses) at(i uint32) string {
	base := a.cidr.Addr().As4()
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(base[:])+1+i)
	return netip.AddrFrom4(out).String()
}

// first is the address of the API server itself.
func (a *addresses) first() string { return a.at(0) }

func (a *addresses) inRange(ip string) (string, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil || !addr.Is4() {
		return "", fmt.Errorf("%w, which is %s", errOutOfRange, a.cidr)
	}
	base, own := a.cidr.Addr().As4(), addr.As4()
	offset := binary.BigEndian.Uint32(own[:]) - binary.BigEndian.Uint32(base[:])
	if !a.cidr.Contains(addr) || offset == 0 || offset > a.size() {
		return "", fmt.Errorf("%w, which is %s", errOutOfRange, a.cidr)
	}
	return addr.String(), nil
}

// allocate takes the wanted address, or any free one when none is wanted.
func (a *addresses) allocate(ctx context.Context, wanted, owner string) (string, error) {
	if wanted != "" {
		ip, err := a.inRange(wanted)
		if err != nil {
			return "", err
		}
		if ip == a.first() && owner != apiServiceOwner {
			return "", errTaken
		}
		ok, err := a.take(ctx, ip, owner)
		if err == nil && !ok {
			err = errTaken
		}
		return ip, err
	}
	for range randomAttempts {
		ip := a.at(1 + rand.Uint32N(a.size()-1))
		if ok, err := a.take(ctx, ip, owner); ok || err != nil {
			return ip, err
		}
	}
	return a.sweep(ctx, owner)
}

// sweep looks for a free address in a nearly full range.
func (a *addresses) sweep(ctx context.Context, owner string) (string, error) {
	taken, err := a.keys(ctx)
	if err != nil {
		return "", err
	}
	for i := uint32(1); i < a.size(); i++ {
		ip := a.at(i)
		if _, ok := taken[ip]; ok {
			continue
		}
		if ok, err := a.take(ctx, ip, owner); ok || err != nil {
			return ip, err
		}
	}
	return "", errExhausted
}

func (a *addresses) key(ip string) string { return path.Join(a.prefix, ip) }

func (a *addresses) value(owner string) string {
	return owner + " " + strconv.FormatInt(a.now().Unix(), 10)
}

func (a *addresses) take(ctx context.Context, ip, owner string) (bool, error) {
	key := a.key(ip)
	resp, err := a.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, a.value(owner))).Commit()
	if err != nil {
		return false, fmt.Errorf("take the service address %s: %w", ip, err)
	}
	return resp.Succeeded, nil
}

// check tells whether an address could be taken now.
func (a *addresses) check(ctx context.Context, wanted string) error {
	ip, err := a.inRange(wanted)
	if err != nil {
		return err
	}
	resp, err := a.client.Get(ctx, a.key(ip), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	if resp.Count > 0 || ip == a.first() {
		return errTaken
	}
	return nil
}

// release gives an address back if it still is the owner's. A failure costs an
// address until the next start, so it is logged and not returned.
func (a *addresses) release(ctx context.Context, ip, owner string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	key := a.key(ip)
	resp, err := a.client.Get(ctx, key)
	if err == nil && len(resp.Kvs) == 1 && ownerOf(resp.Kvs[0].Value) == owner {
		_, err = a.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", resp.Kvs[0].ModRevision)).
			Then(clientv3.OpDelete(key)).Commit()
	}
	if err != nil {
		slog.Warn("service address not released, it will be at the next start", "ip", ip, "service", owner, "error", err)
	}
}

func ownerOf(value []byte) string {
	owner, _, _ := strings.Cut(string(value), " ")
	return owner
}

// keys returns the addresses taken, with the value of each key.
func (a *addresses) keys(ctx context.Context) (map[string]string, error) {
	resp, err := a.client.Get(ctx, a.prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list the service addresses: %w", err)
	}
	out := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		out[path.Base(string(kv.Key))] = string(kv.Value)
	}
	return out, nil
}

// repair makes the keys agree with the services, after a crash between the write
// of one and of the other. owners maps the addresses in use to their services.
func (a *addresses) repair(ctx context.Context, owners map[string]string) error {
	taken, err := a.keys(ctx)
	if err != nil {
		return err
	}
	for ip, owner := range owners {
		if ownerOf([]byte(taken[ip])) != owner {
			if _, err := a.client.Put(ctx, a.key(ip), a.value(owner)); err != nil {
				return fmt.Errorf("restore the service address %s: %w", ip, err)
			}
		}
	}
	for ip, value := range taken {
		_, stamp, _ := strings.Cut(value, " ")
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if owners[ip] != "" || (err == nil && a.now().Sub(time.Unix(seconds, 0)) < orphanAge) {
			continue
		}
		a.release(ctx, ip, ownerOf([]byte(value)))
	}
	return nil
}
