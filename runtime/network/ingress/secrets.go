package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// firstRead is how long a table waits for a Secret that it has just begun to follow:
// one that may not be read must not keep the rest from being served.
const firstRead = 5 * time.Second

type secretKey struct{ namespace, name string }

// secrets follows the Secrets that Ingresses name, and no others: a worker may read
// those alone.
type secrets struct {
	client  kubernetes.Interface
	changed func()

	mu       sync.Mutex
	followed map[secretKey]*followedSecret
}

type followedSecret struct {
	stop context.CancelFunc
	inf  cache.SharedIndexInformer
	late bool // it was waited for long enough

	from *corev1.Secret // what cert was parsed from
	cert *tls.Certificate
	err  error
}

func newSecrets(client kubernetes.Interface, changed func()) *secrets {
	return &secrets{client: client, changed: changed, followed: map[secretKey]*followedSecret{}}
}

// want follows these Secrets and no others, and says whether all have been read.
func (s *secrets) want(ctx context.Context, keys map[secretKey]bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, f := range s.followed {
		if !keys[key] {
			f.stop()
			delete(s.followed, key)
		}
	}
	all := true
	for key := range keys {
		f := s.followed[key]
		if f == nil {
			f = s.follow(ctx, key)
			s.followed[key] = f
		}
		all = all && (f.late || f.inf.HasSynced())
	}
	return all
}

// follow begins to watch one Secret.
func (s *secrets) follow(ctx context.Context, key secretKey) *followedSecret {
	ctx, cancel := context.WithCancel(ctx)
	lw := cache.NewListWatchFromClient(s.client.CoreV1().RESTClient(), "secrets", key.namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, key.name))
	f := &followedSecret{stop: cancel, inf: cache.NewSharedIndexInformer(lw, &corev1.Secret{}, 0, cache.Indexers{})}
	told, _ := f.inf.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only for an informer that has ended
		AddFunc: func(any) { s.changed() }, UpdateFunc: func(any, any) { s.changed() }, DeleteFunc: func(any) { s.changed() },
	})
	go f.inf.RunWithContext(ctx)
	go func() {
		wait, cancel := context.WithTimeout(ctx, firstRead)
		defer cancel()
		cache.WaitForCacheSync(wait.Done(), told.HasSynced)
		s.mu.Lock()
		f.late = true
		s.mu.Unlock()
		s.changed()
	}()
	return f
}

func (s *secrets) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.followed {
		f.stop()
	}
	clear(s.followed)
}

// certificate returns that of a Secret; it is parsed once for each of its states.
func (s *secrets) certificate(namespace, name string) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.followed[secretKey{namespace, name}]
	if f == nil {
		return nil, errors.New("not read yet")
	}
	obj, ok, err := f.inf.GetIndexer().GetByKey(namespace + "/" + name)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errors.New("it does not exist")
	}
	if secret := obj.(*corev1.Secret); secret != f.from {
		f.from = secret
		f.cert, f.err = parseCertificate(secret)
	}
	return f.cert, f.err
}

// parseCertificate reads a Secret of type kubernetes.io/tls.
func parseCertificate(s *corev1.Secret) (*tls.Certificate, error) {
	pem, key := s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]
	if len(bytes.TrimSpace(pem)) == 0 || len(bytes.TrimSpace(key)) == 0 {
		return nil, fmt.Errorf("it needs the keys %s and %s", corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	cert, err := tls.X509KeyPair(pem, key)
	if err != nil {
		return nil, err
	}
	return &cert, nil // with its Leaf, since Go 1.23
}
