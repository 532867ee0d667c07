package etcd_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"gitk8s.dev/gitk8s/controlplane/etcd"
)

// childDir, when set, makes this test binary a process that writes keys to an
// embedded store there and prints each number once it is acknowledged.
// childPadding is how many bytes each value has besides.
const (
	childDir     = "GITK8S_TEST_ETCD_DIR"
	childPadding = "GITK8S_TEST_ETCD_PADDING"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		writeForever(dir)
		return
	}
	os.Exit(m.Run())
}

func writeForever(dir string) {
	s, err := etcd.Start(context.Background(), etcd.Config{DataDir: dir})
	if err != nil {
		panic(err)
	}
	padding, _ := strconv.Atoi(os.Getenv(childPadding))
	for i := 0; ; i++ {
		key := strconv.Itoa(i)
		if _, err := s.Client().Put(context.Background(), "/k/"+key, key+strings.Repeat(" ", padding)); err != nil {
			panic(err)
		}
		if _, err := os.Stdout.WriteString(key + "\n"); err != nil {
			return
		}
	}
}

// What was acknowledged is there after kill -9.
func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	buf := make([]byte, 4096)
	for text.Len() < 400 {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("the writer ended early: %v", err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			break
		}
	}
	_ = cmd.Wait() // it was killed
	lines := strings.Split(text.String(), "\n")
	last, err := strconv.Atoi(lines[len(lines)-2])
	if err != nil {
		t.Fatal(err)
	}

	s, err := etcd.Start(t.Context(), etcd.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	resp, err := s.Client().Get(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	if resp.Count < int64(last)+1 {
		t.Errorf("%d writes were acknowledged and %d are there", last+1, resp.Count)
	}
}

func TestStartTwiceAndExternal(t *testing.T) {
	if _, err := etcd.Start(t.Context(), etcd.Config{}); err == nil {
		t.Error("an empty configuration was accepted")
	}
	if _, err := etcd.Start(t.Context(), etcd.Config{DataDir: "x", Endpoints: []string{"y"}}); err == nil {
		t.Error("a data directory with endpoints was accepted")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := etcd.Start(ctx, etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}}); err == nil {
		t.Error("a store that is not there was opened")
	}
	begin := time.Now()
	s, err := etcd.Start(t.Context(), etcd.Config{DataDir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s", time.Since(begin))
	begin = time.Now()
	s.Close()
	s.Close()
	t.Logf("closed after %s", time.Since(begin))
	select {
	case err := <-s.Err():
		t.Errorf("a closed server reports %v", err)
	default:
	}
}
