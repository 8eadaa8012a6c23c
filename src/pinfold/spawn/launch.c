/* launch: make one process inside a cgroup, without waiting for its exec.
 *
 *   parent                                      child (shares our memory, has its own stack)
 *   ------                                      -----
 *   block every signal
 *   clone3(VM|FILES|INTO_CGROUP|PIDFD) ------>  a table of descriptors of its own
 *   unblock them, return to the caller          the steps of steps.c, exec
 *   child.failed / child.error  <-------------  a step failed: note it, exit
 *   the pidfd: it has ended                     the kernel clears child.sharing at exec or exit
 *
 * Not vfork, but where the cgroup has a memory controller (launchers.py says why): that sleeps until
 * the exec, which a file system can hold up for ever. Whoever calls it is a thread kept for that. */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "raw.h"

int wait_word(int *word, int set, double seconds)
{
	double whole = seconds < 0 ? 0 : seconds;
	struct timespec end;
	int now;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t)whole;
	end.tv_nsec += (long)((whole - (double)(time_t)whole) * 1e9);
	if (end.tv_nsec >= 1000000000) {
		end.tv_nsec -= 1000000000;
		end.tv_sec += 1;
	}
	while (!!(now = get_word(word)) != set) {
		/* FUTEX_WAIT_BITSET takes an absolute time. The kernel wakes without FUTEX_PRIVATE_FLAG. */
		long err = RAW6(SYS_futex, word, FUTEX_WAIT_BITSET, now, &end, 0, FUTEX_BITSET_MATCH_ANY);

		if (err == -ETIMEDOUT || err == -EINTR)
			return (int)err;
	}
	return 0;
}

void set_word(int *word, int value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	RAW3(SYS_futex, word, FUTEX_WAKE, 1);
}

#define SHARED (CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID)

/* exit_signal is 0: a child that fails before exec sends the host program no SIGCHLD and shows up in
 * none of its waits. exec makes it SIGCHLD again (de_thread() in fs/exec.c). */
static long clone_born_inside(struct launch *l)
{
	struct clone_args args = {0};

	args.flags = SHARED | CLONE_INTO_CGROUP; /* the last one: Linux 5.7 */
	if (l->c.detach)
		args.flags |= CLONE_FILES;
	if (l->c.vfork) {
		args.flags |= CLONE_VFORK | CLONE_PARENT_SETTID;
		args.parent_tid = (uintptr_t)&l->c.pid;
	}
	args.pidfd = (uintptr_t)&l->pidfd;
	args.child_tid = (uintptr_t)&l->c.sharing;
	args.stack = (uintptr_t)l->stack;
	args.stack_size = STACK;
	args.cgroup = (uint64_t)l->c.cgroup;
	return clone3_onto(&args, run_steps, &l->c);
}

/* clone(2) hands the pidfd out through the parent_tid argument (Linux 5.2). */
static long clone_plainly(struct launch *l, int flags)
{
	int pid = clone(run_steps, l->stack + STACK, SHARED | flags, &l->c, &l->pidfd, NULL, &l->c.sharing);

	return pid < 0 ? -errno : pid;
}

/* A seccomp filter answers ENOSYS or EPERM; the delegation rules EACCES (cgroup-v2.rst, "Delegation
 * Containment"). Anything else is a real error of this cgroup and is reported. */
static int is_refusal(long err)
{
	return err == -ENOSYS || err == -EPERM || err == -EACCES;
}

static int __attribute__((noreturn)) go_between(void *arg)
{
	struct launch *l = arg;

	setsid(); /* so that no signal to our process group ever finds the orphan in it */
	l->c.pid = (int)clone_plainly(l, CLONE_VFORK);
	for (;;)
		syscall(SYS_exit_group, 0);
}

/* As a daemon forks twice. The one in between shares our fds, for the pidfd, and has neither an exit signal
 * nor an exec that would give it one: the host program does not hear of it. */
static long clone_orphan(struct launch *l)
{
	int between = clone(go_between, l->stack + 2 * STACK, CLONE_VM | CLONE_VFORK | CLONE_FILES, l);
	siginfo_t info;

	if (between < 0)
		return -errno;
	while (waitid(P_PID, (id_t)between, &info, WEXITED | __WALL) < 0 && errno == EINTR)
		;
	return l->c.pid;
}

void launch(struct launch *l, int orphan)
{
	uint64_t all = ~0ULL;
	long pid;

	l->c.sharing = 1;
	/* No handler of the host program may run in the child, on our memory. */
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &l->c.caller_mask, sizeof all);
	if (orphan) {
		pid = clone_orphan(l);
	} else {
		pid = clone_born_inside(l);
		if (is_refusal(pid)) {
			l->c.move = l->moved = 1;
			l->c.detach = 0;
			l->c.detached = 1;
			pid = clone_plainly(l, l->c.vfork ? CLONE_VFORK : 0);
		}
	}
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &l->c.caller_mask, NULL, sizeof all);
	if (pid < 0) {
		l->c.failed = STEP_CLONE;
		l->c.error = (int)-pid;
		set_word(&l->c.sharing, 0);
	}
	set_word(&l->c.pid, (int)pid); /* the last word on it: whoever waits for that takes it from here */
}
