package userspace

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxClients bounds what is remembered of clients; beyond it any of them is forgotten.
const maxClients = 1 << 16

// affinity remembers which endpoint each client of a port had.
type affinity struct {
	mu      sync.Mutex
	clients map[netip.Addr]remembered
}

type remembered struct {
	to    netip.AddrPort
	until time.Time
}

// first puts the client's endpoint first in a list that is not empty, and remembers what
// is first for as long from now.
func (a *affinity) first(client netip.Addr, to []netip.AddrPort, long time.Duration, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	had, ok := a.clients[client]
	if i := slices.Index(to, had.to); ok && i >= 0 && now.Before(had.until) {
		to[0], to[i] = to[i], to[0]
	}
	if a.clients == nil {
		a.clients = map[netip.Addr]remembered{}
	}
	if !ok && len(a.clients) >= maxClients {
		a.forget(now)
	}
	a.clients[client] = remembered{to[0], now.Add(long)}
}

// forget makes room: of those whose time is over, or else of any.
func (a *affinity) forget(now time.Time) {
	for c, r := range a.clients {
		if !now.Before(r.until) {
			delete(a.clients, c)
		}
	}
	for c := range a.clients {
		if len(a.clients) < maxClients {
			break
		}
		delete(a.clients, c)
	}
}
