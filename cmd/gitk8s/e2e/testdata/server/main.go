// Command server is the only program in the tests' images: a web server by default,
// and a few small commands for what the tests need to happen in a container.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// whoami asks the API who this pod's service account is.
func whoami() error {
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	files := map[string][]byte{"token": nil, "ca.crt": nil, "namespace": nil}
	for name := range files {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			return err
		}
		files[name] = b
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(files["ca.crt"])
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	url := "https://" + net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")) +
		"/apis/authentication.k8s.io/v1/selfsubjectreviews"
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(files["token"]))
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var review struct {
		Status struct {
			UserInfo struct {
				Username string
				Groups   []string
				Extra    map[string][]string
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&review); err != nil {
		return err
	}
	u := review.Status.UserInfo
	fmt.Println(string(files["namespace"])+":", u.Username, u.Groups, u.Extra)
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("the API answers with %s", resp.Status)
	}
	return nil
}

// processes prints the command lines of those that can be seen.
func processes() error {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 {
			fmt.Println(e.Name(), strings.ReplaceAll(strings.TrimSuffix(string(line), "\x00"), "\x00", " "))
		}
	}
	return err
}

// id prints who this process is: user, group and supplemental groups.
func id() error {
	groups, err := os.Getgroups()
	fmt.Println(os.Getuid(), os.Getgid(), groups)
	return err
}

// owner prints to whom a file belongs, and who may use it how.
func owner(name string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		return err
	}
	fmt.Printf("%d:%d %o\n", st.Uid, st.Gid, st.Mode&0o7777)
	return nil
}

func main() {
	args := append(os.Args[1:], "", "")
	var err error
	// `kubectl cp` calls these two in a container.
	switch filepath.Base(os.Args[0]) {
	case "tar":
		end(runTar(os.Args[1:]))
	case "test":
		end(isDir(args[1]))
	}
	switch args[0] {
	case "":
		err = serve()
	case "cat":
		err = cat(args[1:])
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "args":
		fmt.Println(strings.Join(os.Args[2:], "|"))
	case "sleep":
		err = sleep(args[1])
	case "exit":
		err = exit(args[1])
	case "stdin":
		_, err = io.Copy(os.Stdout, os.Stdin)
	case "id":
		err = id()
	case "owner":
		err = owner(args[1])
	case "whoami":
		err = whoami()
	case "processes":
		err = processes()
	case "write":
		err = os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "fill":
		err = fill(args[1], args[2])
	case "exists":
		_, err = os.Stat(args[1])
	case "remove":
		err = os.Remove(args[1])
	case "fetch":
		if args[2] != "" {
			client.Timeout, err = time.ParseDuration(args[2])
		}
		err = errors.Join(err, fetch(os.Stdout, args[1]))
	case "busy":
		busy(args[1])
	case "lookup":
		err = lookup(args[1], args[2])
	case "sctp-serve":
		err = sctpServe(args[1])
	case "sctp-ask":
		err = sctpAsk(args[1])
	case "alloc":
		err = alloc(args[1])
	case "orphan":
		// The child outlives us: it becomes the container init's to reap.
		err = exec.Command(os.Args[0], "sleep", "10ms").Start()
	default:
		err = fmt.Errorf("unknown command %q", args[0])
	}
	end(err)
}

// end ends the program.
func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// isDir is `test -d`.
func isDir(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", path)
	}
	return err
}

func serve() error {
	load := &load{}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%s from %s msg=%s\n", os.Getenv("VERSION"), host, os.Getenv("MESSAGE"))
	})
	check := func(w http.ResponseWriter, file string) {
		if _, err := os.Stat(file); err == nil || os.Getenv("READY") == "never" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { check(w, "/unready") })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { check(w, "/dead") })
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Probe") == "" {
			w.WriteHeader(http.StatusForbidden)
		}
	})
	mux.HandleFunc("/echo", echo)
	if dir := os.Getenv("PAGES"); dir != "" {
		mux.Handle("/pages/", http.StripPrefix("/pages/", http.FileServer(http.Dir(dir))))
	}
	reports := &sync.Map{}
	mux.HandleFunc("POST /report/{of}", func(_ http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil {
			reports.Store(r.PathValue("of"), b)
		}
	})
	mux.HandleFunc("GET /report/{of}", func(w http.ResponseWriter, r *http.Request) {
		b, ok := reports.Load(r.PathValue("of"))
		if !ok {
			http.Error(w, "there is no report yet", http.StatusNotFound)
			return
		}
		_, _ = w.Write(b.([]byte))
	})
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s asked by %s\n", host, client)
	})
	mux.HandleFunc("/zombies", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, zombies()) })
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		if err := fetch(w, r.URL.Query().Get("url")); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})
	mux.HandleFunc("/load/start", func(w http.ResponseWriter, r *http.Request) { load.start(r.URL.Query().Get("url")) })
	mux.HandleFunc("/load/stop", func(w http.ResponseWriter, r *http.Request) { load.stop(w) })
	mux.HandleFunc("/load/count", func(w http.ResponseWriter, r *http.Request) { load.count(w) })
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	srv := &http.Server{Addr: ":" + port, Handler: mux}
	stopped := make(chan struct{})
	go func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		<-c
		fmt.Println("stopping")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		close(stopped)
	}()
	if err := serveHealth(os.Getenv("GRPC_PORT")); err != nil {
		return err
	}
	fmt.Println("listening", os.Getenv("VERSION"))
	go answerDatagrams(":" + port)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	fmt.Println("stopped")
	if f := os.Getenv("STOP_FILE"); f != "" {
		return os.WriteFile(f, []byte("terminated"), 0o644)
	}
	return nil
}

// echo sends back what comes over a WebSocket; "close me" is answered by closing it.
func echo(w http.ResponseWriter, r *http.Request) {
	var up websocket.Upgrader
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, b, err := c.ReadMessage()
		if err == nil && string(b) == "close me" {
			kind, b = websocket.CloseMessage, websocket.FormatCloseMessage(4001, "as you wish")
		}
		if err != nil || c.WriteMessage(kind, b) != nil {
			return
		}
	}
}

// health answers gRPC health checks of service "shop" as /readyz does.
type health struct {
	healthpb.UnimplementedHealthServer
}

func (health) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if r.Service != "shop" {
		return nil, status.Error(codes.NotFound, r.Service)
	}
	s := healthpb.HealthCheckResponse_SERVING
	if _, err := os.Stat("/unready"); err == nil {
		s = healthpb.HealthCheckResponse_NOT_SERVING
	}
	return &healthpb.HealthCheckResponse{Status: s}, nil
}

// answerDatagrams says who asked whom, by UDP.
func answerDatagrams(at string) {
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		return // the port is the web server's, and that by TCP
	}
	host, _ := os.Hostname()
	buf := make([]byte, 100)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		client, _, _ := net.SplitHostPort(from.String())
		_, _ = conn.WriteTo(fmt.Appendf(nil, "%s asked by %s", host, client), from)
	}
}

func serveHealth(port string) error {
	if port == "" {
		return nil
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, health{})
	go func() { _ = srv.Serve(l) }()
	return nil
}

func cat(files []string) error {
	for _, f := range files {
		if f == "" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		os.Stdout.Write(b)
	}
	return nil
}

func sleep(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	time.Sleep(d)
	return nil
}

func exit(s string) error {
	code, err := strconv.Atoi(s)
	if err != nil {
		return err
	}
	fmt.Println("exiting with", code)
	os.Exit(code)
	return nil
}

// It takes little memory itself: the file may be a gigabyte's in memory.
func fill(file, kib string) error {
	n, err := strconv.Atoi(kib)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for left := n << 10; left > 0 && err == nil; left -= len(chunk) {
		_, err = f.Write(chunk[:min(left, len(chunk))])
	}
	return errors.Join(err, f.Close())
}

// busy keeps a processor busy while a file is there.
func busy(path string) {
	const slice = 20 * time.Millisecond
	for {
		if _, err := os.Stat(path); err != nil {
			time.Sleep(10 * slice) // at rest it takes next to nothing, on a slow machine too
			continue
		}
		for start := time.Now(); time.Since(start) < slice; {
		}
	}
}

// lookup asks the name server, and prints what it says in a fixed order.
func lookup(kind, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r := &net.Resolver{PreferGo: true}
	var out []string
	var err error
	switch kind {
	case "host":
		out, err = r.LookupHost(ctx, name)
	case "ip4", "ip6":
		var list []netip.Addr
		list, err = r.LookupNetIP(ctx, kind, name)
		for _, ip := range list {
			out = append(out, ip.Unmap().String())
		}
	case "ptr":
		out, err = r.LookupAddr(ctx, name)
	case "cname":
		var s string
		s, err = r.LookupCNAME(ctx, name)
		out = []string{s}
	case "txt":
		out, err = r.LookupTXT(ctx, name)
	case "srv":
		var list []*net.SRV
		_, list, err = r.LookupSRV(ctx, "", "", name)
		for _, s := range list {
			out = append(out, fmt.Sprintf("%s:%d", s.Target, s.Port))
		}
	}
	if err != nil {
		return err
	}
	slices.Sort(out)
	fmt.Println(strings.Join(out, " "))
	return nil
}

func alloc(s string) error {
	mib, err := strconv.Atoi(s)
	if err != nil {
		return err
	}
	b := make([]byte, mib<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("allocated", len(b))
	return nil
}

var client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func fetch(w io.Writer, url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

// zombies counts ended processes that nobody waited for.
func zombies() int {
	n := 0
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		s := string(b)
		if i := strings.LastIndexByte(s, ')'); i >= 0 && strings.HasPrefix(s[i+1:], " Z") {
			n++
		}
	}
	return n
}

// load requests one URL again and again, each on a new connection, and counts.
type load struct {
	mu     sync.Mutex
	cancel context.CancelFunc
	done   chan struct{}
	report report
}

type report struct {
	Total  int      `json:"total"`
	Failed int      `json:"failed"`
	Errors []string `json:"errors,omitempty"`
}

func (l *load) start(url string) {
	ctx, cancel := context.WithCancel(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel, l.done, l.report = cancel, make(chan struct{}), report{}
	done := l.done
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			begun := time.Now()
			err := fetch(io.Discard, url)
			l.mu.Lock()
			l.report.Total++
			if err != nil {
				l.report.Failed++
				l.report.Errors = append(l.report.Errors, fmt.Sprintf("%s +%s %v", begun.Format("15:04:05.000"), time.Since(begun).Round(time.Millisecond), err))
			}
			l.mu.Unlock()
		}
	}()
}

func (l *load) stop(w io.Writer) {
	l.mu.Lock()
	cancel, done := l.cancel, l.done
	l.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
	l.count(w)
}

func (l *load) count(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = json.NewEncoder(w).Encode(l.report)
}
