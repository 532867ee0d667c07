// Testbin is what the tests of the container packages run: the executable whose
// shim they test, and the program inside of their containers.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
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
	case "print":
		for _, a := range args {
			fmt.Println(a)
		}
	case "stderr":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "exit":
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "sleep": // ready, then until killed
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "trap": // ends with 7 on SIGTERM, and ignores the rest
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		signal.Ignore(syscall.SIGINT)
		fmt.Println("ready")
		<-c
		fmt.Println("terminated")
		os.Exit(7)
	case "deaf": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "orphans": // leaves n orphans that end at once
		n, _ := strconv.Atoi(args[0])
		for range n {
			orphan()
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "orphan":
		child := exec.Command("/proc/self/exe", "exit", "0")
		if err := child.Start(); err != nil {
			fmt.Println(err)
		}
	case "zombies":
		fmt.Println(zombies())
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
	case "spin":
		fmt.Println("ready")
		for {
		}
	case "cat":
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			fmt.Println(in.Text())
		}
	case "files":
		for _, a := range args {
			b, err := os.ReadFile(a)
			if err != nil {
				fmt.Println("ERR", err)
				continue
			}
			fmt.Printf("%s", b)
		}
	case "write":
		fmt.Println(os.WriteFile(args[0], []byte(args[1]), 0o644))
	case "id":
		groups, _ := os.Getgroups()
		wd, _ := os.Getwd()
		host, _ := os.Hostname()
		fmt.Println(os.Getuid(), os.Getgid(), groups, wd, host)
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "long":
		n, _ := strconv.Atoi(args[0])
		fmt.Println(strings.Repeat("x", n))
	case "lines":
		n, _ := strconv.Atoi(args[0])
		for i := range n {
			fmt.Println("line", i)
		}
	case "tty":
		var st syscall.Stat_t
		err := syscall.Fstat(0, &st)
		fmt.Println("chardev", err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev>>8 == 136)
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
	case "spawn": // leaves a child behind that ignores SIGTERM and holds the output
		child := exec.Command("/proc/self/exe", "deaf")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			fmt.Println(err)
		}
	case "unshare":
		fmt.Println(syscall.Unshare(syscall.CLONE_NEWUSER))
	case "mknod":
		fmt.Println(syscall.Mknod("/null2", syscall.S_IFBLK|0o600, 8<<8))
	}
}

func orphan() {
	middle := exec.Command("/proc/self/exe", "orphan")
	if out, err := middle.CombinedOutput(); err != nil {
		fmt.Println(err, string(out))
	}
}

func zombies() int {
	entries, _ := os.ReadDir("/proc")
	n := 0
	for _, e := range entries {
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err == nil && strings.Contains(string(b), ") Z ") {
			n++
		}
	}
	return n
}
