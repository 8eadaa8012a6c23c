/* _spawn: start one program inside a cgroup, and say which step failed if it did not.
 *
 * This is all of pinfold that cannot be Python: what runs between clone and exec.
 *
 *   parent                                      child (shares our memory, has its own stack)
 *   ------                                      -----
 *   build struct plan, block every signal
 *   clone3(VFORK|VM|INTO_CGROUP|PIDFD) ------>  session, fds, cwd, umask, rlimits,
 *   (this thread sleeps, the GIL is free)       groups, gid, uid, no_new_privs, exec
 *   plan.failed_step / plan.error  <----------  a step failed: note it, _exit
 *   reap a failed child, raise or return pid
 *
 * Rules for the child: no allocation, no locks, no stdio, no Python, and none of the libc wrappers
 * that talk to other threads (setuid() and friends signal every thread of the process, and here that
 * would be the parent's). The memory is shared, so errors need no pipe: the parent reads the plan. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clone3.h"

#ifndef P_PIDFD
#define P_PIDFD 3 /* Linux 5.4 */
#endif

#define CHILD_STACK (64 * 1024)
#define KERNEL_SIGNALS 64

enum step { CLONE, CGROUP, SIGNALS, SESSION, FDS, CWD, UMASK, RLIMITS, GROUPS, GID, UID, NO_NEW_PRIVS, EXEC };
static const char *const STEP_NAMES[] = {"clone",  "cgroup", "signals", "session", "fds", "cwd",          "umask",
                                         "rlimits", "groups", "gid",     "uid",     "no_new_privs", "exec"};

struct limit { /* as packed by plan.py */
	uint64_t resource, soft, hard;
};

struct plan {
	char **argv;
	char **paths; /* candidates for exec, in order */
	char **envp;
	const char *cwd; /* NULL: stay */
	int fds[3];      /* what becomes 0, 1, 2; -1: inherit ours */
	int cgroup;      /* directory to be born in; an orphan is in ours */
	int move;        /* the child must move itself: it was not born there */
	int orphan;      /* it is to be nobody's child here */
	int new_session;
	int umask; /* -1: keep */
	int no_new_privs;
	unsigned long long keep_ignored; /* signals, bit N-1 for N, that may stay ignored */
	const struct limit *rlimits;
	Py_ssize_t rlimits_size; /* in bytes */
	const gid_t *groups;     /* NULL: keep */
	Py_ssize_t groups_size;  /* in bytes */
	long gid, uid;           /* -1: keep */
	char *stack;
	long pid; /* or the negative errno of clone */
	int pidfd;
	/* Written by the child: */
	enum step failed_step;
	int error;      /* 0: it got as far as exec */
	int path_index; /* the candidate that failed */
};

static void __attribute__((noreturn)) fail(struct plan *p, enum step step)
{
	p->error = errno ? errno : EINVAL;
	p->failed_step = step;
	for (;;)
		syscall(SYS_exit_group, 127);
}

/* A zeroed buffer reads as {SIG_DFL, no flags, empty mask} in the kernel's struct sigaction of every
 * architecture. Ignored signals survive exec (Python ignores SIGPIPE), so each is set, not only handlers. */
static void reset_signals(unsigned long long keep_ignored)
{
	char dfl[64] = {0};

	for (int sig = 1; sig <= KERNEL_SIGNALS; sig++)
		if (sig != SIGKILL && sig != SIGSTOP && !(keep_ignored >> (sig - 1) & 1))
			syscall(SYS_rt_sigaction, sig, dfl, NULL, 8);
}

/* Ours may be closed, or be some close-on-exec file that landed there because they were closed: then
 * the command gets /dev/null, as a program with a hole at 0-2 writes its messages into its first file. */
static int standard_fd(int want, int at)
{
	int flags;

	if (want < 0) {
		flags = fcntl(at, F_GETFD);
		if (flags >= 0 && !(flags & FD_CLOEXEC))
			return at;
		want = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (want < 0)
			return -1;
	}
	/* Out of the way of 0-2, which are about to be overwritten. */
	return want < 3 ? fcntl(want, F_DUPFD_CLOEXEC, 3) : want;
}

static int arrange_fds(struct plan *p)
{
	int from[3];

	for (int i = 0; i < 3; i++)
		if ((from[i] = standard_fd(p->fds[i], i)) < 0)
			return -1;
	for (int i = 0; i < 3; i++)
		if (from[i] != i && dup2(from[i], i) < 0)
			return -1;
	return syscall(SYS_close_range, 3, ~0U, 0); /* Linux 5.9 */
}

static int set_rlimits(const struct plan *p)
{
	const struct limit *end = p->rlimits + p->rlimits_size / sizeof *end;

	for (const struct limit *l = p->rlimits; l < end; l++) {
		struct rlimit value = {l->soft, l->hard}, now;

		if (setrlimit((int)l->resource, &value) < 0 || getrlimit((int)l->resource, &now) < 0)
			return -1;
		if ((errno = memcmp(&value, &now, sizeof now) ? EINVAL : 0)) /* not set until read back */
			return -1;
	}
	return 0;
}

/* As execvp(3) searches, but ENOEXEC is an error: nothing is ever handed to a shell. */
static void exec_first(struct plan *p)
{
	int refused = 0, refused_at = 0;

	errno = ENOENT;
	for (int i = 0; p->paths[i]; i++) {
		p->path_index = i;
		execve(p->paths[i], p->argv, p->envp);
		if (errno == EACCES && !refused) {
			refused = 1;
			refused_at = i;
		} else if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) {
			return;
		}
	}
	if (refused) {
		errno = EACCES;
		p->path_index = refused_at;
	}
}

/* The slow way (7-20 ms after any quiet): only where being born in the cgroup was refused. */
static int move_into(int cgroup)
{
	int procs = openat(cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC | O_NOFOLLOW);

	return procs < 0 || write(procs, "0", 1) != 1 ? -1 : 0;
}

static int child(void *arg)
{
	struct plan *p = arg;
	uint64_t none = 0;

	if (p->move && move_into(p->cgroup) < 0)
		fail(p, CGROUP);
	reset_signals(p->keep_ignored);
	if (p->new_session && setsid() < 0)
		fail(p, SESSION);
	if (arrange_fds(p) < 0)
		fail(p, FDS);
	if (p->cwd && chdir(p->cwd) < 0)
		fail(p, CWD);
	if (p->umask >= 0)
		umask(p->umask);
	if (set_rlimits(p) < 0)
		fail(p, RLIMITS);
	/* Raw calls: see the rules above. Groups first, as uid 0 is needed for each of the others. */
	if (p->groups && syscall(SYS_setgroups, p->groups_size / sizeof *p->groups, p->groups) < 0)
		fail(p, GROUPS);
	if (p->gid >= 0 && syscall(SYS_setresgid, p->gid, p->gid, p->gid) < 0)
		fail(p, GID);
	if (p->uid >= 0 && syscall(SYS_setresuid, p->uid, p->uid, p->uid) < 0)
		fail(p, UID);
	if (p->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail(p, NO_NEW_PRIVS);
	if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none) < 0)
		fail(p, SIGNALS);
	exec_first(p);
	fail(p, EXEC);
}

/* exit_signal is 0: a child that fails before exec sends the host program no SIGCHLD and shows up in
 * none of its waits. exec makes it SIGCHLD again (de_thread() in fs/exec.c). */
static void clone_born_inside(struct plan *p)
{
	struct clone_args args = {0};

	args.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_INTO_CGROUP; /* the last one: Linux 5.7 */
	args.pidfd = (uintptr_t)&p->pidfd;
	args.stack = (uintptr_t)p->stack;
	args.stack_size = CHILD_STACK;
	args.cgroup = (uint64_t)p->cgroup;
	p->pid = clone3_onto(&args, child, p);
}

static void clone_plainly(struct plan *p)
{
	/* clone(2) hands the pidfd out through the parent_tid argument (Linux 5.2). */
	int pid = clone(child, p->stack + CHILD_STACK, CLONE_VM | CLONE_VFORK | CLONE_PIDFD, p, &p->pidfd);

	p->pid = pid < 0 ? -errno : pid;
}

/* A seccomp filter answers ENOSYS or EPERM; the delegation rules EACCES (cgroup-v2.rst, "Delegation
 * Containment"). Anything else is a real error of this cgroup and is reported. */
static int is_refusal(long err)
{
	return err == -ENOSYS || err == -EPERM || err == -EACCES;
}

static void bury(idtype_t type, int id)
{
	siginfo_t info;

	while (waitid(type, (id_t)id, &info, WEXITED | __WALL) < 0 && errno == EINTR)
		;
}

static int __attribute__((noreturn)) go_between(void *arg)
{
	setsid(); /* so that no signal to our process group ever finds the orphan in it */
	clone_plainly(arg);
	for (;;)
		syscall(SYS_exit_group, 0);
}

/* As a daemon forks twice. The one in between shares our fds, for the pidfd, and has neither an exit signal
 * nor an exec that would give it one: the host program does not hear of it. */
static void clone_orphan(struct plan *p)
{
	int between = clone(go_between, p->stack + 2 * CHILD_STACK, CLONE_VM | CLONE_VFORK | CLONE_FILES, p);

	if (between < 0)
		p->pid = -errno;
	else
		bury(P_PID, between);
}

static void launch(struct plan *p)
{
	uint64_t all = ~0ULL, old;
	int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
	/* Not mmap: a fresh mapping costs the page faults and the TLB flush on each start. */
	char *memory = malloc(2 * CHILD_STACK + 16);

	if (!memory) {
		p->pid = -ENOMEM;
		return;
	}
	p->stack = (char *)(((uintptr_t)memory + 15) & ~(uintptr_t)15);
	/* No handler of the host program may run in the child, on our memory. */
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &old, sizeof all);
	if (p->orphan)
		clone_orphan(p);
	else
		clone_born_inside(p);
	if (is_refusal(p->pid) && !p->orphan) {
		p->move = 1;
		clone_plainly(p);
	}
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &old, NULL, sizeof old);
	free(memory);
	/* A change of uid makes the memory undumpable (commit_creds()), and that memory is ours too. */
	if (p->uid >= 0 || p->gid >= 0)
		prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0);
	if (p->pid > 0 && p->error) {
		bury(P_PIDFD, p->pidfd);
		close(p->pidfd);
	}
}

/* ---- from Python values to the plan ------------------------------------------------------------ */

/* The strings stay owned by the list, which the caller's frame keeps alive; only the array is ours. */
static char **strings_of(PyObject *list)
{
	Py_ssize_t n = PyList_Size(list);
	char **v;

	if (n < 0)
		return NULL;
	if (!(v = PyMem_Malloc((size_t)(n + 1) * sizeof *v)))
		return (char **)PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < n; i++) {
		/* With a NULL length this also refuses an embedded NUL. */
		if (PyBytes_AsStringAndSize(PyList_GetItem(list, i), &v[i], NULL) < 0) {
			PyMem_Free(v);
			return NULL;
		}
	}
	v[n] = NULL;
	return v;
}

PyDoc_STRVAR(spawn_doc,
"spawn(argv, paths, env, cwd, fds, cgroup, new_session, umask, rlimits, groups, gid, uid,\n"
"      no_new_privs, keep_ignored, orphan, born)\n"
"\n"
"Start a program in the cgroup whose directory is the fd `cgroup`; as an orphan in ours, and nobody's child.\n"
"Returns once it has been exec'ed, with (pid, pidfd, born_inside) appended to the list `born`.\n"
"rlimits, groups: packed. Raises OSError(errno, step, path or None).");

static PyObject *spawn(PyObject *Py_UNUSED(self), PyObject *args)
{
	struct plan p = {0};
	PyObject *argv, *paths, *env, *born, *started, *result = NULL;
	Py_ssize_t cwd_size;

	if (!PyArg_ParseTuple(args, "OOOz#(iii)ipiy#z#llpKpO!:spawn", &argv, &paths, &env, &p.cwd, &cwd_size, &p.fds[0],
			      &p.fds[1], &p.fds[2], &p.cgroup, &p.new_session, &p.umask, &p.rlimits, &p.rlimits_size,
			      &p.groups, &p.groups_size, &p.gid, &p.uid, &p.no_new_privs, &p.keep_ignored,
			      &p.orphan, &PyList_Type, &born))
		return NULL;
	if (!(p.argv = strings_of(argv)) || !(p.paths = strings_of(paths)) || !(p.envp = strings_of(env)))
		goto out;

	Py_BEGIN_ALLOW_THREADS
	launch(&p);
	Py_END_ALLOW_THREADS

	if (p.pid < 0) {
		p.error = (int)-p.pid;
		p.failed_step = CLONE;
	}
	if (p.error) {
		PyObject *path = p.failed_step == EXEC ? PyList_GetItem(paths, p.path_index) : Py_None;
		PyObject *what = Py_BuildValue("isO", p.error, STEP_NAMES[p.failed_step], path);

		if (what) {
			PyErr_SetObject(PyExc_OSError, what);
			Py_DECREF(what);
		}
		goto out;
	}
	started = Py_BuildValue("liO", p.pid, p.pidfd, p.move ? Py_False : Py_True);
	if (started && PyList_Append(born, started) == 0)
		result = Py_NewRef(Py_None);
	Py_XDECREF(started);
out:
	PyMem_Free(p.argv);
	PyMem_Free(p.paths);
	PyMem_Free(p.envp);
	return result;
}

static PyMethodDef methods[] = {{"spawn", spawn, METH_VARARGS, spawn_doc}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_spawn",
	.m_doc = "Start a program inside a cgroup (clone3, CLONE_INTO_CGROUP).",
	.m_methods = methods,
	.m_slots = (PyModuleDef_Slot[]){{0, NULL}},
};

PyMODINIT_FUNC PyInit__spawn(void)
{
	return PyModuleDef_Init(&module);
}
