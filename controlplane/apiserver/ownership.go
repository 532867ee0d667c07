package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ownership keeps names of which each has one owner at most. Each one taken is a key in
// etcd, made in a transaction that fails when it is there: two servers on one etcd
// cannot give the same to two, and nothing has to be rebuilt on restart.
type ownership struct {
	client *clientv3.Client
	prefix string
	what   string // what is claimed, for logs and errors
	now    func() time.Time
}

// orphanAge is how old a key without a service must be to be removed: longer than
// any request that might be about to create the service.
const orphanAge = 5 * time.Minute

func (o *ownership) key(name string) string { return path.Join(o.prefix, name) }

func (o *ownership) value(owner string) string {
	return owner + " " + strconv.FormatInt(o.now().Unix(), 10)
}

// take tells whether the name was free, and is the owner's now.
func (o *ownership) take(ctx context.Context, name, owner string) (bool, error) {
	key := o.key(name)
	resp, err := o.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, o.value(owner))).Commit()
	if err != nil {
		return false, fmt.Errorf("take the %s %s: %w", o.what, name, err)
	}
	return resp.Succeeded, nil
}

// owner of a name, empty when nobody has it.
func (o *ownership) owner(ctx context.Context, name string) (string, error) {
	resp, err := o.client.Get(ctx, o.key(name))
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return ownerOf(resp.Kvs[0].Value), nil
}

// release gives a name back if it still is the owner's. A failure costs the name
// until the next start, so it is logged and not returned.
func (o *ownership) release(ctx context.Context, name, owner string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	key := o.key(name)
	resp, err := o.client.Get(ctx, key)
	if err == nil && len(resp.Kvs) == 1 && ownerOf(resp.Kvs[0].Value) == owner {
		_, err = o.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", resp.Kvs[0].ModRevision)).
			Then(clientv3.OpDelete(key)).Commit()
	}
	if err != nil {
		slog.Warn(o.what+" not released, it will be at the next start", "name", name, "service", owner, "error", err)
	}
}

func ownerOf(value []byte) string {
	owner, _, _ := strings.Cut(string(value), " ")
	return owner
}

// all returns the names taken, with the value of each key.
func (o *ownership) all(ctx context.Context) (map[string]string, error) {
	resp, err := o.client.Get(ctx, o.prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list each %s: %w", o.what, err)
	}
	out := make(map[string]string, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		out[path.Base(string(kv.Key))] = string(kv.Value)
	}
	return out, nil
}

// repair makes the keys agree with the services, after a crash between the write
// of one and of the other. owners maps the names in use to their services.
func (o *ownership) repair(ctx context.Context, owners map[string]string) error {
	taken, err := o.all(ctx)
	if err != nil {
		return err
	}
	for name, owner := range owners {
		if was := ownerOf([]byte(taken[name])); was != owner {
			slog.Warn(o.what+" was not kept for its service, it is now", "name", name, "service", owner, "instead of", was)
			if _, err := o.client.Put(ctx, o.key(name), o.value(owner)); err != nil {
				return fmt.Errorf("restore the %s %s: %w", o.what, name, err)
			}
		}
	}
	for name, value := range taken {
		_, stamp, _ := strings.Cut(value, " ")
		seconds, err := strconv.ParseInt(stamp, 10, 64)
		if owners[name] != "" || (err == nil && o.now().Sub(time.Unix(seconds, 0)) < orphanAge) {
			continue
		}
		o.release(ctx, name, ownerOf([]byte(value)))
	}
	return nil
}
