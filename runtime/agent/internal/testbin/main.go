// Testbin is what the agent's tests run: the executable that holds the shim, and
// the program inside of their containers.
package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "gitk8s.dev/gitk8s/runtime/container/shim"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "serve":
		serve(args[0])
	case "print":
		fmt.Println(strings.Join(args, " "))
	case "files":
		for _, a := range args {
			b, err := os.ReadFile(a)
			if err != nil {
				fmt.Println("ERR", err)
				continue
			}
			fmt.Print(string(b))
		}
	case "exists": // exit code 0 if the file exists
		if _, err := os.Stat(args[0]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "mode":
		info, err := os.Stat(args[0])
		if err != nil {
			fmt.Println("ERR", err)
			return
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Printf("%04o %d:%d\n", info.Mode().Perm(), st.Uid, st.Gid)
	case "write":
		if err := os.WriteFile(args[0], []byte(args[1]), 0o644); err != nil {
			fmt.Println("ERR", err)
			os.Exit(1)
		}
	case "fill": // a file with so many bytes
		n, _ := strconv.Atoi(args[1])
		fmt.Println(os.WriteFile(args[0], make([]byte, n), 0o644))
	case "mkdir":
		fmt.Println(os.Mkdir(args[0], 0o755))
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "id":
		groups, _ := os.Getgroups()
		wd, _ := os.Getwd()
		host, _ := os.Hostname()
		fmt.Println(os.Getuid(), os.Getgid(), groups, wd, host)
	case "fail": // says why in the termination message
		fmt.Fprintln(os.Stderr, "failing:", strings.Join(args[1:], " "))
		os.WriteFile("/dev/termination-log", []byte(strings.Join(args[1:], " ")), 0o644)
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "eat": // memory, until killed
		var hold [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i)
			}
			hold = append(hold, b)
			_ = hold
		}
	case "lines":
		n, _ := strconv.Atoi(args[0])
		for i := range n {
			fmt.Println("line", i)
		}
	case "processes": // of those to be seen, the command lines
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 {
				fmt.Println(e.Name(), strings.ReplaceAll(strings.TrimSuffix(string(line), "\x00"), "\x00", " "))
			}
		}
	case "ask": // prompts without a line's end, and answers
		in := bufio.NewScanner(os.Stdin)
		for fmt.Print("name? "); in.Scan(); fmt.Print("name? ") {
			fmt.Println("hello", in.Text())
		}
		fmt.Println("end of input")
	case "sleep":
		fmt.Println("sleeping")
		wait()
	}
}

// serve answers HTTP until SIGTERM. It is healthy until /tmp/sick exists.
func serve(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "version %s\n", os.Getenv("VERSION"))
	})
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat("/tmp/sick"); err == nil {
			http.Error(w, "sick", http.StatusServiceUnavailable)
		}
	})
	fmt.Println("listening")
	go http.Serve(l, nil)
	wait()
	fmt.Println("bye")
}

func wait() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	select {
	case <-c:
	case <-time.After(time.Hour):
	}
}
