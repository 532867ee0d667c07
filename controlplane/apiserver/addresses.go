package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// addresses hands out the addresses of services.
type addresses struct {
	ownership
	cidr netip.Prefix
}

const (
	addressPrefix = "/gitk8s/clusterips"
	// MaxServiceBits is how many bits of a service's address may be its own, as in
	// kube-apiserver.
	MaxServiceBits = 20
	// attempts at random addresses before looking at all of them.
	randomAttempts = 16
)

var (
	errTaken      = errors.New("provided IP is already allocated")
	errOutOfRange = errors.New("the provided IP is not in the valid range")
	errExhausted  = errors.New("range is full")
)

func newAddresses(client *clientv3.Client, cidr netip.Prefix, now func() time.Time) (*addresses, error) {
	if bits := cidr.Addr().BitLen() - cidr.Bits(); !cidr.IsValid() || bits < 2 || bits > MaxServiceBits {
		return nil, fmt.Errorf("apiserver: the service network %s must have 2 to %d host bits", cidr, MaxServiceBits)
	}
	return &addresses{ownership{client: client, prefix: addressPrefix, what: "service address", now: now}, cidr.Masked()}, nil
}

// family is that of the range.
func (a *addresses) family() corev1.IPFamily { return familyOf(a.cidr.Addr()) }

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// size is the number of addresses without the network's own and the last one.
func (a *addresses) size() uint32 { return 1<<(a.cidr.Addr().BitLen()-a.cidr.Bits()) - 2 }

// low are the lowest 32 bits of an address.
func low(a netip.Addr) uint32 {
	b := a.AsSlice()
	return binary.BigEndian.Uint32(b[len(b)-4:])
}

// at returns the i-th address, from 0.
func (a *addresses) at(i uint32) string {
	b := a.cidr.Addr().AsSlice()
	binary.BigEndian.PutUint32(b[len(b)-4:], low(a.cidr.Addr())+1+i)
	out, _ := netip.AddrFromSlice(b)
	return out.String()
}

// first is the address of the API server itself.
func (a *addresses) first() string { return a.at(0) }

func (a *addresses) inRange(ip string) (string, error) {
	addr, err := netip.ParseAddr(ip)
	if err != nil || !a.cidr.Contains(addr) {
		return "", fmt.Errorf("%w, which is %s", errOutOfRange, a.cidr)
	}
	if offset := low(addr) - low(a.cidr.Addr()); offset == 0 || offset > a.size() {
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
		if ip == a.first() && !strings.HasPrefix(owner, apiServiceOwner+"/") {
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
	taken, err := a.all(ctx)
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

// check tells whether an address could be taken now.
func (a *addresses) check(ctx context.Context, wanted string) error {
	ip, err := a.inRange(wanted)
	if err != nil {
		return err
	}
	owner, err := a.owner(ctx, ip)
	if err == nil && (owner != "" || ip == a.first()) {
		err = errTaken
	}
	return err
}
