package gitsource

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// sshHost is an ssh server that runs the real `git upload-pack` for who has its
// user's key. Like most it has host keys of several kinds.
type sshHost struct {
	addr       string
	ecdsa, ed  ssh.PublicKey
	privateKey []byte // PEM of the user's key
	asked      []string
	mu         sync.Mutex
}

func newSSHHost(t *testing.T) *sshHost {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	user, private := sshKey(t)
	h := &sshHost{privateKey: private}
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "git" || string(key.Marshal()) != string(user.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	for _, k := range []any{ec, ed} {
		s, err := ssh.NewSignerFromKey(k)
		if err != nil {
			t.Fatal(err)
		}
		cfg.AddHostKey(s)
		if h.ecdsa == nil {
			h.ecdsa = s.PublicKey()
		} else {
			h.ed = s.PublicKey()
		}
	}
	l := listen(t)
	h.addr = l.Addr().String()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go h.serve(t.Context(), conn, cfg)
		}
	}()
	return h
}

// sshKey makes a key of a user.
func sshKey(t *testing.T) (ssh.PublicKey, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s.PublicKey(), pem.EncodeToMemory(block)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (h *sshHost) serve(ctx context.Context, conn net.Conn, cfg *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, cfg)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		ch, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			defer ch.Close()
			for r := range requests {
				var command struct{ Line string }
				if r.Type != "exec" || ssh.Unmarshal(r.Payload, &command) != nil {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				h.mu.Lock()
				h.asked = append(h.asked, command.Line)
				h.mu.Unlock()
				status := struct{ Code uint32 }{1}
				if path, ok := strings.CutPrefix(command.Line, "git-upload-pack "); ok {
					cmd := exec.CommandContext(ctx, "git", "upload-pack", strings.Trim(path, "'"))
					cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
					// A pipe of our own: the client keeps its half open until it has the
					// exit code, and Run would wait for it.
					in, err := cmd.StdinPipe()
					if err != nil {
						return
					}
					go func() {
						_, _ = io.Copy(in, ch)
						in.Close()
					}()
					if cmd.Run() == nil {
						status.Code = 0
					}
				}
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(status))
				return
			}
		}()
	}
}

func newMirrors(t *testing.T) *Repositories {
	t.Helper()
	return NewRepositories(filepath.Join(t.TempDir(), "mirrors"), t.TempDir())
}

// TestMirrorOverSSH follows a repository on an ssh host with a key.
func TestMirrorOverSSH(t *testing.T) {
	h := newSSHHost(t)
	c := newClone(t)
	first := c.commit("app.yaml", "v1")
	repos := newMirrors(t)
	location := func(secret map[string]string) Location {
		data := map[string][]byte{}
		for k, v := range secret {
			data[k] = []byte(v)
		}
		return Location{URL: "ssh://git@" + h.addr + c.dir, Ref: "main", Auth: AuthFrom(data)}
	}
	known := knownhosts.Line([]string{h.addr}, h.ed)
	l := location(map[string]string{"ssh-privatekey": string(h.privateKey), "known_hosts": known + "\n"})
	if got, err := repos.Fetch(t.Context(), l); err != nil || got.SHA != first {
		t.Fatalf("fetched %+v, %v", got, err)
	}
	second := c.commit("app.yaml", "v2")
	if got, err := repos.Fetch(t.Context(), l); err != nil || got.SHA != second {
		t.Fatalf("fetched %+v, %v", got, err)
	}
	before := len(h.asked)
	if got, err := repos.Fetch(t.Context(), l); err != nil || got.SHA != second || len(h.asked) != before+1 {
		t.Errorf("an unchanged remote: %+v, %v, asked %d times", got, err, len(h.asked)-before)
	}

	_, stranger := sshKey(t)
	other, _ := sshKey(t)
	for _, tt := range []struct {
		name   string
		secret map[string]string
		want   []string
	}{
		{"no Secret's key", map[string]string{"known_hosts": known}, []string{"ssh-privatekey and known_hosts"}},
		{"no known_hosts", map[string]string{"ssh-privatekey": string(h.privateKey)}, []string{"has no known_hosts", "ssh-keyscan"}},
		{"broken known_hosts", map[string]string{"ssh-privatekey": string(h.privateKey), "known_hosts": "git.example.com nonsense"}, []string{"known_hosts: "}},
		{"broken key", map[string]string{"ssh-privatekey": "nonsense", "known_hosts": known}, []string{"ssh-privatekey: "}},
		{"unknown host", map[string]string{"ssh-privatekey": string(h.privateKey), "known_hosts": knownhosts.Line([]string{"git.example.com"}, h.ed)},
			[]string{"has no key of [127.0.0.1]:", "add the line \"" + knownhosts.Line([]string{h.addr}, h.ecdsa), ssh.FingerprintSHA256(h.ecdsa)}},
		{"another host's key", map[string]string{"ssh-privatekey": string(h.privateKey), "known_hosts": knownhosts.Line([]string{h.addr}, other)},
			[]string{"shows another key", "somebody may be in between", ssh.FingerprintSHA256(h.ed)}},
		{"wrong key", map[string]string{"ssh-privatekey": string(stranger), "known_hosts": known}, []string{"does not accept the key in ssh-privatekey"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := repos.Fetch(t.Context(), location(tt.secret))
			if !errors.Is(err, ErrAuth) {
				t.Fatalf("%v, want ErrAuth", err)
			}
			for _, w := range append(tt.want, h.addr) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is missing in: %v", w, err)
				}
			}
			if strings.Contains(err.Error(), "/tmp/") && !strings.Contains(c.dir, "/tmp/") {
				t.Errorf("names a temporary file: %v", err)
			}
		})
	}
	gone := l
	gone.URL += "-gone"
	if _, err := repos.Fetch(t.Context(), gone); err == nil || !strings.Contains(err.Error(), "-gone") {
		t.Errorf("a repository that is not there: %v", err)
	}
}

// TestSilentHost: a host that accepts a connection and says nothing keeps neither
// the caller nor, look after look, another connection.
func TestSilentHost(t *testing.T) {
	l := listen(t)
	conns := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	key, private := sshKey(t)
	repos := newMirrors(t)
	where := Location{URL: "ssh://git@" + l.Addr().String() + "/repo", Ref: "main", Auth: &Auth{
		SSHKey: private, KnownHosts: []byte(knownhosts.Line([]string{l.Addr().String()}, key)),
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := repos.Fetch(ctx, where); !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want ErrUnreachable at the deadline", err)
	}
	if _, err := repos.Fetch(t.Context(), where); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("a second look: %v", err)
	}
	(<-conns).Close()
	if len(conns) > 0 {
		t.Errorf("%d more connections", len(conns))
	}
}
