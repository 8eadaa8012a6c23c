/*
 * The floor: what a command in a cgroup of its own takes with nothing around it but the system calls.
 *
 *   floor serve CGROUP   answers each line of stdin with the nanoseconds that it took:
 *       bare true|echo   vfork-like clone3, exec, wait; no cgroup
 *       fresh true|echo  the same, born in a new cgroup below CGROUP; its accounts read, the cgroup removed
 *       kill N           a tree of N daemons in a new cgroup: from the write to cgroup.kill to `populated 0`
 *   floor tree N         makes N daemons that hold stdout, says "up", and stays
 *
 * An error ends it with a message: a figure that means something else is worse than none.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SETTLE_NS 20000000 /* cgroup.events tells of a change once in 10 ms: let the one of the start pass */
#define LOOK_NS 200000	   /* how often cgroup.events is read in spite of that */

struct command {
	char *const *argv;
	int out, err; /* -1: as they are */
};

struct group {
	char path[4096];
	int dir, events;
};

static char *const TRUE_ARGV[] = {"/bin/true", NULL};
static char *const ECHO_ARGV[] = {"/bin/sh", "-c", "echo out; echo err >&2", NULL};

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void rest(int64_t ns)
{
	struct timespec t = {ns / 1000000000, ns % 1000000000};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

/* --- Starting: clone3, which no libc wraps, on a stack of its own since the child shares our memory until exec --- */

static char stack[64 << 10] __attribute__((aligned(64)));

static int child(void *arg)
{
	struct command *c = arg;

	if (c->out >= 0)
		dup2(c->out, 1);
	if (c->err >= 0)
		dup2(c->err, 2);
	execv(c->argv[0], c->argv);
	_exit(127);
}

static long clone_onto(struct clone_args *args, int (*entry)(void *), void *arg)
{
#if defined(__x86_64__)
	long result;
	register void *to __asm__("r12") = (void *)entry;
	register void *with __asm__("r13") = arg;

	__asm__ volatile("syscall; test %%rax, %%rax; jnz 1f; xor %%ebp, %%ebp; mov %%r13, %%rdi; call *%%r12; hlt; 1:"
			 : "=a"(result)
			 : "0"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(to), "r"(with)
			 : "rcx", "r11", "cc", "memory");
	return result;
#elif defined(__aarch64__)
	register long result __asm__("x0") = (long)args;
	register long size __asm__("x1") = sizeof *args;
	register long number __asm__("x8") = SYS_clone3;
	register void *to __asm__("x19") = (void *)entry;
	register void *with __asm__("x20") = arg;

	__asm__ volatile("svc #0; cbnz x0, 1f; mov x29, xzr; mov x0, x20; blr x19; brk #0; 1:"
			 : "+r"(result)
			 : "r"(size), "r"(number), "r"(to), "r"(with)
			 : "x30", "cc", "memory");
	return result;
#else
#error "the floor can call clone3 on x86-64 and aarch64 only"
#endif
}

static pid_t start(struct command *c, int cgroup, int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
		.pidfd = (uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
		.stack = (uintptr_t)stack,
		.stack_size = sizeof stack,
	};
	long pid;

	if (cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = cgroup;
	}
	pid = clone_onto(&args, child, c);
	if (pid < 0)
		errx(1, "clone3: %s", strerror(-pid));
	return pid;
}

static void finish(pid_t pid, int pidfd, int killed)
{
	struct pollfd p = {pidfd, POLLIN, 0};
	int status;

	poll(&p, 1, -1);
	if (waitpid(pid, &status, 0) != pid || (killed ? !WIFSIGNALED(status) : status != 0))
		errx(1, "the command ended with status %d", status);
	close(pidfd);
}

static void read_to_end(int fd)
{
	char buffer[4096];

	while (read(fd, buffer, sizeof buffer) > 0)
		;
	close(fd);
}

/* --- A cgroup from mkdir to rmdir --- */

static void make(struct group *g, const char *base)
{
	static unsigned long number;

	snprintf(g->path, sizeof g->path, "%s/floor-%lu", base, number++);
	if (mkdir(g->path, 0755))
		err(1, "mkdir %s", g->path);
	g->dir = open(g->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	g->events = openat(g->dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (g->dir < 0 || g->events < 0)
		err(1, "%s", g->path);
}

static int populated(struct group *g)
{
	char text[256];
	ssize_t n = pread(g->events, text, sizeof text - 1, 0);

	if (n < 0)
		err(1, "%s/cgroup.events", g->path);
	text[n] = 0;
	return strstr(text, "populated 1") != NULL;
}

static void account(struct group *g)
{
	char text[4096];
	int fd = openat(g->dir, "cpu.stat", O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof text) < 0)
		err(1, "%s/cpu.stat", g->path);
	close(fd);
}

static void drop(struct group *g)
{
	close(g->events);
	close(g->dir);
	while (rmdir(g->path))
		if (errno != EBUSY)
			err(1, "rmdir %s", g->path);
}

/* --- What is measured --- */

static int64_t run(char *const *argv, int capture, const char *base)
{
	struct command c = {argv, -1, -1};
	struct group g = {.dir = -1};
	int out[2], error[2], pidfd;
	int64_t began = now();
	pid_t pid;

	if (base)
		make(&g, base);
	if (capture) {
		if (pipe2(out, O_CLOEXEC) || pipe2(error, O_CLOEXEC))
			err(1, "pipe2");
		c.out = out[1];
		c.err = error[1];
	}
	pid = start(&c, g.dir, &pidfd);
	if (capture) {
		close(out[1]);
		close(error[1]);
		read_to_end(out[0]);
		read_to_end(error[0]);
	}
	finish(pid, pidfd, 0);
	if (base) {
		if (populated(&g))
			errx(1, "something is left in %s", g.path);
		account(&g);
		drop(&g);
	}
	return now() - began;
}

static int64_t kill_tree(char *count, const char *base)
{
	char *const argv[] = {"/proc/self/exe", "tree", count, NULL};
	struct command c = {argv, -1, -1};
	struct group g;
	struct timespec look = {0, LOOK_NS};
	struct pollfd events;
	int pipes[2], pidfd, fd;
	int64_t began, took;
	char up[3];
	pid_t pid;

	make(&g, base);
	if (pipe2(pipes, O_CLOEXEC))
		err(1, "pipe2");
	c.out = pipes[1];
	pid = start(&c, g.dir, &pidfd);
	close(pipes[1]);
	if (read(pipes[0], up, sizeof up) != sizeof up)
		errx(1, "the tree did not come up");
	rest(SETTLE_NS);
	events = (struct pollfd){g.events, POLLPRI, 0};
	populated(&g);

	began = now();
	fd = openat(g.dir, "cgroup.kill", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		err(1, "%s/cgroup.kill", g.path);
	while (populated(&g))
		ppoll(&events, 1, &look, NULL);
	took = now() - began;

	close(fd);
	close(pipes[0]);
	finish(pid, pidfd, 1);
	drop(&g);
	return took;
}

static void serve(const char *base)
{
	char line[64];

	while (fgets(line, sizeof line, stdin)) {
		char *verb = strtok(line, " \n"), *what = strtok(NULL, " \n");
		int64_t took;

		if (!verb || !what)
			errx(2, "what?");
		if (!strcmp(verb, "kill")) {
			took = kill_tree(what, base);
		} else {
			int echo = !strcmp(what, "echo");

			took = run(echo ? ECHO_ARGV : TRUE_ARGV, echo, strcmp(verb, "fresh") ? NULL : base);
		}
		printf("%lld\n", (long long)took);
		fflush(stdout);
	}
}

static void tree(int count)
{
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (pid) {
			waitpid(pid, NULL, 0);
			continue;
		}
		setsid();
		pid = fork();
		if (pid)
			_exit(pid < 0);
		for (;;)
			pause();
	}
	if (write(1, "up\n", 3) != 3)
		err(1, "write");
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	else if (argc == 3 && !strcmp(argv[1], "tree"))
		tree(atoi(argv[2]));
	else
		errx(2, "usage: floor serve CGROUP | floor tree N");
}
