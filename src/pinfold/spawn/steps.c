/* The child: carries out its steps, and becomes the command.
 *
 * It shares our memory and runs beside us, on a stack of its own, with every signal blocked. So: no
 * libc (raw.h says why), no allocation, no locks, no Python. Errors need no pipe, as we read them from
 * struct child. What is slow or can hang (a directory, the program) comes after it has let go of our
 * descriptors, so that nobody else waits for it. */
#define _GNU_SOURCE
#include "steps.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <linux/prctl.h>
#include <signal.h>
#include <sys/resource.h>

#include "raw.h"

#define KERNEL_SIGNALS 64
#define KERNEL_SIGSET 8 /* bytes */

struct kernel_sigaction { /* every architecture's begins with the handler; 64 bytes hold all of them */
	void *handler;
	char rest[56];
};

static void __attribute__((noreturn)) leave(struct child *c, enum op step, long err)
{
	c->failed = step;
	c->error = err < 0 ? (int)-err : EINVAL;
	for (;;)
		RAW1(SYS_exit_group, 127);
}

/* A zeroed buffer reads as {SIG_DFL, no flags, empty mask}. A handler of the host program must not run
 * here, on its memory, once signals are unblocked; exec would reset it anyway. */
static long reset_signals(uint64_t wanted)
{
	struct kernel_sigaction dfl = {0}, now = {0};

	for (int sig = 1; sig <= KERNEL_SIGNALS; sig++) {
		if (sig == SIGKILL || sig == SIGSTOP)
			continue;
		if (!(wanted >> (sig - 1) & 1)) {
			long err = RAW4(SYS_rt_sigaction, sig, 0, &now, KERNEL_SIGSET);

			if (err < 0)
				return err;
			if (now.handler == SIG_IGN)
				continue;
		}
		RAW4(SYS_rt_sigaction, sig, &dfl, 0, KERNEL_SIGSET);
	}
	return 0;
}

/* Ours may be closed, or be some close-on-exec file that landed there because they were closed: then
 * the command gets /dev/null, as a program with a hole at 0-2 writes its messages into its first file. */
static long standard_fd(int want, int at)
{
	if (want < 0) {
		long flags = RAW2(SYS_fcntl, at, F_GETFD);

		if (flags >= 0 && !(flags & FD_CLOEXEC))
			return at;
		want = (int)RAW3(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
		if (want < 0)
			return want;
	}
	/* Out of the way of 0-2, which are about to be overwritten. */
	return want < 3 ? RAW3(SYS_fcntl, want, F_DUPFD_CLOEXEC, 3) : want;
}

static long arrange_fds(const int32_t *want)
{
	long from[3], err;

	for (int i = 0; i < 3; i++)
		if ((from[i] = standard_fd(want[i], i)) < 0)
			return from[i];
	for (int i = 0; i < 3; i++)
		if (from[i] != i && (err = RAW3(SYS_dup3, from[i], i, 0)) < 0)
			return err;
	return 0;
}

static long close_but(const int32_t *keep, size_t count)
{
	unsigned int from = 3;

	for (size_t i = 0; i < count; i++) {
		long err = RAW2(SYS_fcntl, keep[i], F_GETFD);

		if (err < 0 || (err = RAW3(SYS_fcntl, keep[i], F_SETFD, err & ~FD_CLOEXEC)) < 0)
			return err;
		if ((unsigned int)keep[i] > from && (err = RAW3(SYS_close_range, from, keep[i] - 1, 0)) < 0)
			return err;
		from = (unsigned int)keep[i] + 1;
	}
	return RAW3(SYS_close_range, from, ~0U, 0); /* Linux 5.9 */
}

static long set_rlimit(const uint64_t *limit)
{
	struct rlimit64 value = {limit[1], limit[2]}, now;
	long err = RAW4(SYS_prlimit64, 0, limit[0], &value, 0);

	if (err < 0 || (err = RAW4(SYS_prlimit64, 0, limit[0], 0, &now)) < 0)
		return err;
	/* Not set until read back. */
	return now.rlim_cur == value.rlim_cur && now.rlim_max == value.rlim_max ? 0 : -EINVAL;
}

/* The slow way (7-20 ms after any quiet): only where being born in the cgroup was refused. */
static long move_into(int cgroup)
{
	long procs = RAW4(SYS_openat, cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
	long written = procs < 0 ? procs : RAW3(SYS_write, procs, "0", 1);

	return written < 0 ? written : 0;
}

/* As execvp(3) searches, but ENOEXEC is an error: nothing is ever handed to a shell. */
static long exec_first(struct child *c)
{
	long err = -ENOENT;
	int refused = -1;

	for (int i = 0; c->paths[i]; i++) {
		c->path_index = i;
		err = RAW3(SYS_execve, c->paths[i], c->argv, c->envp);
		if (err == -EACCES && refused < 0)
			refused = i;
		else if (err != -ENOENT && err != -ENOTDIR && err != -EACCES)
			return err;
	}
	if (refused < 0)
		return err;
	c->path_index = refused;
	return -EACCES;
}

static long take(struct child *c, const struct step *s, uint64_t *mask)
{
	switch (s->op) {
	case STEP_FDS:
		return arrange_fds((const int32_t *)s->data);
	case STEP_CLOSE:
		return close_but((const int32_t *)s->data, s->size / sizeof(int32_t));
	case STEP_SIGNALS:
		*mask = s->b ? c->caller_mask : 0;
		return reset_signals((uint64_t)s->a);
	case STEP_SESSION:
		return RAW1(SYS_setsid, 0);
	case STEP_GROUP:
		return RAW2(SYS_setpgid, 0, s->a);
	case STEP_CWD:
		return RAW1(SYS_chdir, s->data);
	case STEP_UMASK:
		RAW1(SYS_umask, s->a);
		return 0;
	case STEP_RLIMIT:
		return set_rlimit((const uint64_t *)s->data);
	/* Raw calls, where libc's would change every thread of ours. Groups first: the others take uid 0 away. */
	case STEP_GROUPS:
		return RAW2(SYS_setgroups, s->size / sizeof(uint32_t), s->data);
	case STEP_GID:
		return RAW3(SYS_setresgid, s->a, s->a, s->a);
	case STEP_UID:
		return RAW3(SYS_setresuid, s->a, s->a, s->a);
	case STEP_NO_NEW_PRIVS:
		return RAW5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	}
	return -ENOSYS;
}

/* The table of descriptors is ours until here; from here on it has its own, with what lies below
 * c->detach. Nothing above that is copied, so a start costs the same whatever we hold open. */
static long detach(struct child *c)
{
	long err = RAW3(SYS_close_range, c->detach, ~0U, CLOSE_RANGE_UNSHARE); /* Linux 5.9 */

	if (err < 0)
		return err;
	__atomic_store_n(&c->detached, 1, __ATOMIC_RELEASE);
	RAW3(SYS_futex, &c->detached, FUTEX_WAKE, 1);
	return 0;
}

/* Whoever waits for us while the thread that made us sleeps in vfork has the pid from here. */
static void say_pid(struct child *c)
{
	__atomic_store_n(&c->pid, (int)RAW1(SYS_getpid, 0), __ATOMIC_RELEASE);
	RAW3(SYS_futex, &c->pid, FUTEX_WAKE, 1);
}

int run_steps(void *arg)
{
	struct child *c = arg;
	const char *at = c->steps, *end = c->steps + c->steps_size;
	uint64_t mask = 0;
	long err;

	if (c->vfork)
		say_pid(c);
	if (c->detach && (err = detach(c)) < 0)
		leave(c, STEP_FDS, err);
	if (c->move && (err = move_into(c->cgroup)) < 0)
		leave(c, STEP_CGROUP, err);
	while (at < end) {
		const struct step *s = (const struct step *)at;

		if ((err = take(c, s, &mask)) < 0)
			leave(c, s->op, err);
		at += sizeof *s + ((s->size + 7) & ~7U);
	}
	if ((err = RAW4(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, KERNEL_SIGSET)) < 0)
		leave(c, STEP_SIGNALS, err);
	leave(c, STEP_EXEC, exec_first(c));
}
