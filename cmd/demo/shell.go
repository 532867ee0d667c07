package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// shell runs commands and writes what a terminal would show of them. Lines of
// commands and of watchers may come at the same time; they are kept whole.
type shell struct {
	env  []string
	bold bool

	mu  sync.Mutex
	out io.Writer
}

// newShell makes a shell with the programs of bin on its path, in which gitk8s
// means the cluster of the data directory and git nothing of the user's own.
func newShell(out *os.File, bin, data string) *shell {
	_, plain := os.LookupEnv("NO_COLOR")
	return &shell{
		out: out, bold: !plain && term.IsTerminal(int(out.Fd())),
		env: append(os.Environ(),
			"PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"),
			"GITK8S_DATA_DIR="+data,
			"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
			"GIT_AUTHOR_NAME=demo", "GIT_AUTHOR_EMAIL=demo@localhost",
			"GIT_COMMITTER_NAME=demo", "GIT_COMMITTER_EMAIL=demo@localhost",
		),
	}
}

func (s *shell) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *shell) headline(since time.Duration, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.bold {
		text = "\033[1m" + text + "\033[0m"
	}
	s.say("\n[%4.1fs] %s", since.Seconds(), text)
}

// command is a program ready to run in a folder. Its name is looked up in the
// shell's own path, not in this process'.
func (s *shell) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	path := name
	for _, e := range s.env {
		if list, ok := strings.CutPrefix(e, "PATH="); ok {
			path = lookUp(list, name, path)
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = dir, s.env
	// One that does not end by itself when it is told to is ended.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func lookUp(list, name, otherwise string) string {
	for _, dir := range filepath.SplitList(list) {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return otherwise
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:=@%+,~-]+$`)

func transcript(name string, args []string) string {
	words := []string{"$", name}
	for _, a := range args {
		if !plainWord.MatchString(a) {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// run runs a command as a person would: the line is shown, and what it prints.
func (s *shell) run(ctx context.Context, dir, name string, args ...string) error {
	_, err := s.capture(ctx, dir, name, args...)
	return err
}

// capture is run that also returns what was printed.
func (s *shell) capture(ctx context.Context, dir, name string, args ...string) (string, error) {
	s.say("%s", transcript(name, args))
	cmd := s.command(ctx, dir, name, args...)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var printed bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			line := strings.TrimRight(lines.Text(), " \r")
			s.say("%s", line)
			fmt.Fprintln(&printed, line)
		}
		// A line too long to scan must not block the command.
		_, _ = io.Copy(io.Discard, r)
	}()
	err := cmd.Run()
	w.Close()
	<-done
	if err != nil {
		return printed.String(), fmt.Errorf("`%s`: %w", strings.TrimPrefix(transcript(name, args), "$ "), err)
	}
	return printed.String(), nil
}

// quiet runs a command that is not part of the story and returns its results.
func (s *shell) quiet(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := s.command(ctx, dir, name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("`%s`: %w: %s", strings.TrimPrefix(transcript(name, args), "$ "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
