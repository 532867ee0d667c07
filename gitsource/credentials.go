package gitsource

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/transport"
	gitclient "github.com/go-git/go-git/v5/plumbing/transport/client"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Auth are the credentials for a remote.
type Auth struct {
	// Username and Password (or token) for http and https.
	Username, Password string
	// BearerToken for http and https, instead of them.
	BearerToken string
	// CA are the certificates, in PEM, of the authorities that https remotes are
	// trusted by, besides those that this machine trusts.
	CA []byte
	// SSHKey is a private key in PEM; KnownHosts are lines of a known_hosts file
	// and required with it.
	SSHKey, KnownHosts []byte
}

// AuthFrom reads the keys of a Secret that spec.source.secretRef names:
//
//	username, password   for http and https
//	token                instead of a password; the user name matters to few remotes
//	bearerToken          for http and https, instead of both
//	ca.crt               a private certificate authority
//	ssh-privatekey       as in Secrets of type kubernetes.io/ssh-auth
//	known_hosts          what `ssh-keyscan HOST` prints
func AuthFrom(secret map[string][]byte) *Auth {
	a := &Auth{
		Username: string(secret["username"]), Password: string(secret["password"]), BearerToken: text(secret["bearerToken"]),
		CA: secret["ca.crt"], SSHKey: secret["ssh-privatekey"], KnownHosts: secret["known_hosts"],
	}
	if token := text(secret["token"]); token != "" && a.Password == "" {
		a.Password = token
		if a.Username == "" {
			a.Username = "git"
		}
	}
	return a
}

// text is a token without the end of the line that it had in a file.
func text(b []byte) string { return strings.TrimSpace(string(b)) }

func (l Location) caBundle() []byte {
	if l.Auth == nil {
		return nil
	}
	return l.Auth.CA
}

// maxTransports bounds the sets of open connections, one for each private
// certificate authority.
const maxTransports = 64

func init() {
	// Without a cache each look at a remote with a private authority would open a
	// connection of its own and leave it open.
	c := githttp.NewClientWithOptions(nil, &githttp.ClientOptions{CacheMaxEntries: maxTransports})
	gitclient.InstallProtocol("http", c)
	gitclient.InstallProtocol("https", c)
}

// authMethod turns credentials into go-git's.
func authMethod(l Location) (transport.AuthMethod, error) {
	ep, err := transport.NewEndpoint(l.URL)
	if err != nil {
		return nil, fmt.Errorf("repository URL %q: %w", redact(l.URL), err)
	}
	switch ep.Protocol {
	case "http", "https":
		if ca := l.caBundle(); len(ca) > 0 && !x509.NewCertPool().AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: %w: ca.crt has no certificate", redact(l.URL), ErrAuth)
		}
		switch {
		case l.Auth != nil && l.Auth.BearerToken != "":
			return &githttp.TokenAuth{Token: l.Auth.BearerToken}, nil
		case l.Auth != nil && l.Auth.Password != "":
			return &githttp.BasicAuth{Username: l.Auth.Username, Password: l.Auth.Password}, nil
		}
		return nil, nil
	case "ssh":
		return sshAuth(l, ep)
	}
	return nil, fmt.Errorf("repository URL %q: the scheme %q is not one of http, https, ssh, file", redact(l.URL), ep.Protocol)
}

func sshAuth(l Location, ep *transport.Endpoint) (transport.AuthMethod, error) {
	if l.Auth == nil || len(l.Auth.SSHKey) == 0 {
		return nil, fmt.Errorf("%s: %w: spec.source.secretRef must name a Secret with ssh-privatekey and known_hosts", redact(l.URL), ErrAuth)
	}
	user := ep.User
	if user == "" {
		user = "git"
	}
	keys, err := gitssh.NewPublicKeys(user, l.Auth.SSHKey, "")
	if err != nil {
		return nil, fmt.Errorf("%s: %w: ssh-privatekey: %w", redact(l.URL), ErrAuth, err)
	}
	port := ep.Port
	if port == 0 {
		port = gitssh.DefaultPort
	}
	hosts, err := readKnownHosts(l.Auth.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", redact(l.URL), ErrAuth, err)
	}
	keys.HostKeyCallback = hosts.check
	return &sshKeys{PublicKeys: keys, algorithms: hosts.algorithms(net.JoinHostPort(ep.Host, fmt.Sprint(port)))}, nil
}

// sshKeys asks a host for a key of a kind that is known of it: most hosts have
// several, and would show the kind that comes first.
type sshKeys struct {
	*gitssh.PublicKeys
	algorithms []string
}

// ClientConfig implements gitssh.AuthMethod.
func (k *sshKeys) ClientConfig() (*ssh.ClientConfig, error) {
	c, err := k.PublicKeys.ClientConfig()
	if err != nil {
		return nil, err
	}
	c.HostKeyAlgorithms = k.algorithms
	return c, nil
}

// knownHosts are the lines of a known_hosts file.
type knownHosts struct {
	lookup     ssh.HostKeyCallback
	algorithms func(hostWithPort string) []string
}

func readKnownHosts(lines []byte) (*knownHosts, error) {
	if len(lines) == 0 {
		return nil, errors.New("the Secret has no known_hosts, without which any host could answer; `ssh-keyscan HOST` prints the line")
	}
	// The parser takes names of files alone.
	f, err := os.CreateTemp("", "known_hosts-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(lines)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	db, err := gitssh.NewKnownHostsDb(f.Name())
	if err != nil {
		return nil, fmt.Errorf("known_hosts: %s", strings.ReplaceAll(err.Error(), f.Name(), "line "))
	}
	return &knownHosts{lookup: db.HostKeyCallback(), algorithms: db.HostKeyAlgorithms}, nil
}

// check refuses hosts that are unknown: trusting on first use would hand the first
// deploy to whoever answers.
func (h *knownHosts) check(host string, remote net.Addr, key ssh.PublicKey) error {
	err := h.lookup(host, remote, key)
	var mismatch *knownhosts.KeyError
	if !errors.As(err, &mismatch) {
		return err
	}
	line := knownhosts.Line([]string{host}, key)
	if len(mismatch.Want) == 0 {
		return &hostKeyError{fmt.Sprintf("known_hosts of the Secret has no key of %s, which shows %s; if its owner confirms that, add the line %q",
			knownhosts.Normalize(host), ssh.FingerprintSHA256(key), line)}
	}
	return &hostKeyError{fmt.Sprintf("%s shows another key, %s, than known_hosts of the Secret has: somebody may be in between; if its owner confirms the change, replace the line by %q",
		knownhosts.Normalize(host), ssh.FingerprintSHA256(key), line)}
}

// hostKeyError is a host that is not, or may not be, the one that is meant.
type hostKeyError struct{ text string }

func (e *hostKeyError) Error() string { return e.text }

// classify words a transport's error for people and for errors.Is.
func classify(l Location, err error) error {
	var host *hostKeyError
	var certificate *tls.CertificateVerificationError
	kind, hint := ErrUnreachable, ""
	switch {
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		kind = ErrEmpty
	case errors.As(err, &host):
		return fmt.Errorf("%s: %w: %w", redact(l.URL), ErrAuth, host)
	case errors.As(err, &certificate):
		hint = "; the authority of a private certificate goes into ca.crt of the Secret that spec.source.secretRef names"
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		kind, hint = ErrAuth, "; the remote does not accept the credentials of the Secret"
		switch {
		case l.Auth == nil:
			hint = "; spec.source.secretRef must name a Secret with username and password, or token"
		case l.Auth.Password == "" && l.Auth.BearerToken == "":
			hint = "; the Secret has no username and password, token or bearerToken"
		}
	case strings.Contains(err.Error(), "unable to authenticate"):
		kind, hint = ErrAuth, "; the remote does not accept the key in ssh-privatekey of the Secret"
	case errors.Is(err, transport.ErrRepositoryNotFound):
		kind = ErrRefNotFound
	}
	return fmt.Errorf("%s: %w: %w%s", redact(l.URL), kind, err, hint)
}

// redact removes a password from a URL.
func redact(u string) string {
	parsed, err := url.Parse(u)
	if err != nil {
		return u
	}
	return parsed.Redacted()
}
