// Demo tells what gitk8s is for by doing it, with the real program: it starts
// `gitk8s up`, pushes images and a repository, releases twice, watches a broken
// release being rolled back, rolls back by commit itself, stops everything and
// looks for anything left behind. Each command is printed as it is run.
//
// It is run from the repository's root by `make demo`, which builds what it needs
// in bin. Its exit code is 0 only if every step did what it says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	keep := flag.Bool("keep", false, "leave it running at the end and say what to try next")
	bin := flag.String("bin", "bin", "folder with gitk8s and demo-server")
	manifests := flag.String("manifests", "manifests/demo", "folder with the first release's manifests")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *manifests, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "the demo failed:", err)
		os.Exit(1)
	}
}

// run tells the whole story in a temporary folder, and cleans up unless the
// cluster is to be kept.
func run(ctx context.Context, bin, manifests string, keep bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	manifests, err = filepath.Abs(manifests)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gitk8s-demo-")
	if err != nil {
		return err
	}
	s := &story{
		shell: newShell(os.Stdout, bin, filepath.Join(dir, "data")),
		bin:   bin, manifests: manifests, dir: dir, data: filepath.Join(dir, "data"), repo: filepath.Join(dir, "shop"),
		began: time.Now(), before: machineNow(),
	}
	err = s.tell(ctx, keep)
	if err == nil && keep {
		return s.sayWhatNext()
	}
	if err != nil {
		s.showLogs()
	}
	// What is left must go even if the person at the keyboard has had enough.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	if err != nil {
		return errors.Join(err, s.cleanUp(clean))
	}
	return s.end(clean)
}
