// The first process of every container: runs the command as its child, forwards
// signals to it, reaps orphans, and ends with its exit status. It runs in a
// constructor, before the Go runtime starts, so that it costs a few pages and no
// threads. Where the container shares a PID namespace with others it is not PID 1,
// and the orphans are those of its own command.
//
// Without a command it holds a PID namespace for the containers of a pod: PID 1
// that reaps and does nothing else.
//
// File 3 is a pipe to the shim: the errno of a failed exec is written to it, and
// it is closed without a word by an exec that succeeded.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_FD 3

static const char *path_of(char **envp)
{
	for (; *envp; envp++)
		if (strncmp(*envp, "PATH=", 5) == 0)
			return *envp + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

// exec_command does what execvpe does, without its habit of running a file of
// unknown format with /bin/sh. It returns the errno that describes the failure.
static int exec_command(char **argv, char **envp)
{
	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, envp);
		return errno;
	}
	int result = ENOENT;
	const char *p = path_of(envp);
	while (*p || p[-1] == ':') {
		const char *end = strchrnul(p, ':');
		char file[PATH_MAX];
		int n = snprintf(file, sizeof file, "%.*s%s%s", (int)(end - p), p, end > p ? "/" : "./", argv[0]);
		if (n > 0 && (size_t)n < sizeof file) {
			execve(file, argv, envp);
			if (errno == EACCES)
				result = EACCES;
			else if (errno != ENOENT && errno != ENOTDIR)
				return errno;
		}
		if (!*end)
			break;
		p = end + 1;
	}
	return result;
}

static void run_child(char **argv, char **envp, const sigset_t *mask)
{
	// A process group of its own: a terminal's Ctrl-C then reaches the command
	// once, not a second time by way of the forwarding parent.
	setpgid(0, 0);
	if (isatty(0)) {
		signal(SIGTTOU, SIG_IGN);
		tcsetpgrp(0, getpid());
		signal(SIGTTOU, SIG_DFL);
	}
	fcntl(REPORT_FD, F_SETFD, FD_CLOEXEC);
	sigprocmask(SIG_SETMASK, mask, NULL);
	int err = exec_command(argv, envp);
	ssize_t ignored = write(REPORT_FD, &err, sizeof err);
	(void)ignored;
	_exit(err == ENOENT || err == ENOTDIR ? 127 : 126);
}

static void run(char **argv, char **envp)
{
	sigset_t all, mask;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &mask);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	pid_t child = fork();
	if (child < 0) {
		int err = errno;
		ssize_t ignored = write(REPORT_FD, &err, sizeof err);
		(void)ignored;
		_exit(128);
	}
	if (child == 0)
		run_child(argv, envp, &mask);
	close(REPORT_FD);
	for (;;) {
		int sig = sigwaitinfo(&all, NULL);
		if (sig < 0)
			continue;
		if (sig != SIGCHLD) {
			kill(child, sig);
			continue;
		}
		int status, code = -1;
		for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
			if (pid != child)
				continue;
			code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
		}
		if (code >= 0)
			_exit(code);
	}
}

static void hold(void)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	close(REPORT_FD);
	for (;;) {
		if (sigwaitinfo(&all, NULL) != SIGCHLD)
			continue;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
}

__attribute__((constructor)) static void gitk8s_pid1(int argc, char **argv, char **envp)
{
	static const char name[] = "/.gitk8s-init";
	if (argc < 1)
		return;
	size_t len = strlen(argv[0]);
	if (len < sizeof name - 1 || strcmp(argv[0] + len - (sizeof name - 1), name) != 0)
		return;
	if (argc == 1)
		hold();
	run(argv + 1, envp);
}
