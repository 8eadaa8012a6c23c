/* _spawn: start one program inside a cgroup, without waiting for its exec.
 *
 *   parent                                      child (shares our memory, has its own stack)
 *   ------                                      -----
 *   build struct child, block every signal
 *   clone3(VM|FILES|INTO_CGROUP|PIDFD) ------>  a table of descriptors of its own
 *   unblock them, return to the caller          the steps of steps.c, exec
 *   child.failed / child.error  <-------------  a step failed: note it, exit
 *   the pidfd: it has ended                     the kernel clears child.sharing at exec or exit
 *
 * Not vfork, but where the cgroup has a memory controller: that sleeps until the exec, which a file
 * system can hold up for ever. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "raw.h"
#include "steps.h"

#ifndef P_PIDFD
#define P_PIDFD 3 /* Linux 5.4 */
#endif

#define STACK (16 * 1024) /* no handler runs on it, and no libc */

static const char *const STEP_NAMES[STEP_COUNT] = {
	"clone", "cgroup", "fds",    "fds", "signals", "session",      "session", "cwd",
	"umask", "rlimits", "groups", "gid", "uid",     "no_new_privs", "exec",
};

typedef struct {
	PyObject_HEAD
	struct child c;
	PyObject *strings[4]; /* what the child reads: argv, paths, env, steps */
	void *memory;         /* the arrays and the stacks */
	char *stack;
	long pid; /* 0: not started; negative: the errno of clone */
	int pidfd;
	int moved;
	int vfork;
} Child;

static int is_sharing(Child *self)
{
	return __atomic_load_n(&self->c.sharing, __ATOMIC_ACQUIRE) != 0;
}

/* What the child may still be reading is never freed: one that hangs before its exec costs 20 KiB. */
static void free_memory(Child *self)
{
	if (is_sharing(self))
		return;
	for (int i = 0; i < 4; i++)
		Py_CLEAR(self->strings[i]);
	free(self->memory);
	self->memory = NULL;
}

/* ---- clone ------------------------------------------------------------------------------------- */

#define SHARED (CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID)

/* exit_signal is 0: a child that fails before exec sends the host program no SIGCHLD and shows up in
 * none of its waits. exec makes it SIGCHLD again (de_thread() in fs/exec.c). */
static long clone_born_inside(Child *self)
{
	struct clone_args args = {0};

	args.flags = SHARED | CLONE_INTO_CGROUP; /* the last one: Linux 5.7 */
	if (self->c.detach)
		args.flags |= CLONE_FILES;
	if (self->vfork)
		args.flags |= CLONE_VFORK;
	args.pidfd = (uintptr_t)&self->pidfd;
	args.child_tid = (uintptr_t)&self->c.sharing;
	args.stack = (uintptr_t)self->stack;
	args.stack_size = STACK;
	args.cgroup = (uint64_t)self->c.cgroup;
	return clone3_onto(&args, run_steps, &self->c);
}

/* clone(2) hands the pidfd out through the parent_tid argument (Linux 5.2). */
static long clone_plainly(Child *self, int flags)
{
	int pid = clone(run_steps, self->stack + STACK, SHARED | flags, &self->c, &self->pidfd, NULL, &self->c.sharing);

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
	Child *self = arg;

	setsid(); /* so that no signal to our process group ever finds the orphan in it */
	self->pid = clone_plainly(self, CLONE_VFORK);
	for (;;)
		syscall(SYS_exit_group, 0);
}

/* As a daemon forks twice. The one in between shares our fds, for the pidfd, and has neither an exit signal
 * nor an exec that would give it one: the host program does not hear of it. */
static void clone_orphan(Child *self)
{
	int between = clone(go_between, self->stack + 2 * STACK, CLONE_VM | CLONE_VFORK | CLONE_FILES, self);
	siginfo_t info;

	if (between < 0)
		self->pid = -errno;
	else
		while (waitid(P_PID, (id_t)between, &info, WEXITED | __WALL) < 0 && errno == EINTR)
			;
}

/* Out of the way of 0-2, if ours were closed: whoever opens them again would take the pidfd from us. */
static void clear_of_stdio(Child *self)
{
	int low = self->pidfd;

	if (low < 0 || low > 2)
		return;
	self->pidfd = fcntl(low, F_DUPFD_CLOEXEC, 3);
	if (self->pidfd < 0)
		self->pidfd = low; /* out of descriptors */
	else
		close(low);
}

static void launch(Child *self, int orphan)
{
	uint64_t all = ~0ULL;
	long pid;

	self->c.sharing = 1;
	/* No handler of the host program may run in the child, on our memory. */
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &self->c.caller_mask, sizeof all);
	if (orphan) {
		clone_orphan(self);
	} else {
		pid = clone_born_inside(self);
		if (is_refusal(pid)) {
			self->c.move = self->moved = 1;
			self->c.detach = 0;
			self->c.detached = 1;
			pid = clone_plainly(self, self->vfork ? CLONE_VFORK : 0);
		}
		self->pid = pid;
	}
	clear_of_stdio(self);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &self->c.caller_mask, NULL, sizeof all);
	if (self->pid < 0) {
		self->c.sharing = 0;
		self->c.failed = STEP_CLONE;
		self->c.error = (int)-self->pid;
	}
}

/* ---- the type ---------------------------------------------------------------------------------- */

/* Fill v with the strings of a list, which stay owned by it, and a NULL. */
static int fill(char **v, PyObject *list, Py_ssize_t n)
{
	for (Py_ssize_t i = 0; i < n; i++)
		/* With a NULL length this also refuses an embedded NUL. */
		if (PyBytes_AsStringAndSize(PyList_GetItem(list, i), &v[i], NULL) < 0)
			return -1;
	v[n] = NULL;
	return 0;
}

PyDoc_STRVAR(start_doc,
"start($self, argv, paths, env, steps, cgroup, detach, orphan=False, vfork=False, /)\n--\n\n"
"Start a program in the cgroup whose directory is the fd `cgroup`, and return at once. Once.\n"
"`steps`: packed. `detach`: 1 + the highest descriptor that the steps need, if none of ours above it has to be\n"
"copied for the child; 0: copy them all. An orphan is in our cgroup, nobody's child, and has been exec'ed on return.\n"
"`vfork`: return once it has exec'ed or failed. Where its cgroup has a memory limit: the OOM killer kills everybody who\n"
"shares a victim's memory, which would be us, and passes over a child of vfork (oom_badness(), mm/oom_kill.c, 4.4).");

static PyObject *start(Child *self, PyObject *args)
{
	PyObject *lists[3], *steps;
	Py_ssize_t sizes[3], total = 0;
	int orphan = 0;
	char *steps_at;
	char **at;

	if (!PyArg_ParseTuple(args, "O!O!O!Sii|pp:start", &PyList_Type, &lists[0], &PyList_Type, &lists[1], &PyList_Type,
			      &lists[2], &steps, &self->c.cgroup, &self->c.detach, &orphan, &self->vfork))
		return NULL;
	if (self->pid || self->memory) {
		PyErr_SetString(PyExc_RuntimeError, "started already");
		return NULL;
	}
	if (PyBytes_AsStringAndSize(steps, &steps_at, (Py_ssize_t *)&self->c.steps_size) < 0)
		return NULL;
	self->c.steps = steps_at;
	for (int i = 0; i < 3; i++)
		total += (sizes[i] = PyList_Size(lists[i])) + 1;
	/* Not mmap: a fresh mapping costs page faults and a TLB flush in each start. */
	self->memory = malloc(2 * STACK + 16 + (size_t)total * sizeof *at);
	if (!self->memory)
		return PyErr_NoMemory();
	self->stack = (char *)(((uintptr_t)self->memory + 15) & ~(uintptr_t)15);
	at = (char **)(self->stack + 2 * STACK);
	self->c.argv = at;
	self->c.paths = self->c.argv + sizes[0] + 1;
	self->c.envp = self->c.paths + sizes[1] + 1;
	if (fill(self->c.argv, lists[0], sizes[0]) < 0 || fill(self->c.paths, lists[1], sizes[1]) < 0 ||
	    fill(self->c.envp, lists[2], sizes[2]) < 0) {
		free_memory(self);
		return NULL;
	}
	for (int i = 0; i < 3; i++)
		self->strings[i] = Py_NewRef(lists[i]);
	self->strings[3] = Py_NewRef(steps);
	self->c.detached = !self->c.detach;

	Py_BEGIN_ALLOW_THREADS
	launch(self, orphan);
	Py_END_ALLOW_THREADS

	if (self->pid < 0)
		free_memory(self);
	Py_RETURN_NONE;
}

static int wait_for(int *word, int until, double seconds)
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
	while (!!(now = __atomic_load_n(word, __ATOMIC_ACQUIRE)) != until) {
		/* FUTEX_WAIT_BITSET takes an absolute time. The kernel wakes without FUTEX_PRIVATE_FLAG. */
		long err = RAW6(SYS_futex, word, FUTEX_WAIT_BITSET, now, &end, 0, FUTEX_BITSET_MATCH_ANY);

		if (err == -ETIMEDOUT || err == -EINTR)
			return (int)err;
	}
	return 0;
}

static PyObject *waited(Child *self, PyObject *args, int *word, int until)
{
	double seconds;
	int err;

	if (!PyArg_ParseTuple(args, "d", &seconds))
		return NULL;
	if (!self->pid || !!__atomic_load_n(word, __ATOMIC_ACQUIRE) == until)
		Py_RETURN_TRUE;
	if (seconds <= 0)
		Py_RETURN_FALSE;
	Py_BEGIN_ALLOW_THREADS
	err = wait_for(word, until, seconds);
	Py_END_ALLOW_THREADS
	if (err == -EINTR && PyErr_CheckSignals() < 0)
		return NULL;
	return PyBool_FromLong(err == 0);
}

PyDoc_STRVAR(wait_detached_doc,
"wait_detached($self, seconds, /)\n--\n\n"
"Wait until the child has its own copies of the descriptors it was given; False: not yet, or a signal came.");

static PyObject *wait_detached(Child *self, PyObject *args)
{
	return is_sharing(self) ? waited(self, args, &self->c.detached, 1) : Py_NewRef(Py_True);
}

PyDoc_STRVAR(wait_exec_doc,
"wait_exec($self, seconds, /)\n--\n\n"
"Wait until the child has exec'ed or ended, and our memory is our own again; False: not yet, or a signal came.");

static PyObject *wait_exec(Child *self, PyObject *args)
{
	return waited(self, args, &self->c.sharing, 0);
}

PyDoc_STRVAR(failure_doc,
"failure($self, /)\n--\n\n"
"(errno, step, path or None) of the step that failed, once the child has ended; None if it got as far as its exec.");

static PyObject *failure(Child *self, PyObject *Py_UNUSED(unused))
{
	PyObject *path = Py_None;

	if (!self->c.error || is_sharing(self))
		Py_RETURN_NONE;
	if (self->c.failed == STEP_EXEC && self->strings[1])
		path = PyList_GetItem(self->strings[1], self->c.path_index);
	return Py_BuildValue("isO", self->c.error, STEP_NAMES[self->c.failed], path);
}

PyDoc_STRVAR(reap_doc,
"reap($self, /)\n--\n\n"
"Collect it: its exit status, negative for a signal; None while it runs. Raises ChildProcessError where\n"
"somebody else has collected it.");

/* A child that was killed before its exec has no SIGCHLD as its exit signal, and is only found with __WALL. */
static PyObject *reap(Child *self, PyObject *Py_UNUSED(unused))
{
	siginfo_t info;

	info.si_pid = 0;
	if (waitid(P_PIDFD, (id_t)self->pidfd, &info, WEXITED | WNOHANG | __WALL) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (!info.si_pid)
		Py_RETURN_NONE;
	return PyLong_FromLong(info.si_code == CLD_EXITED ? info.si_status : -info.si_status);
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nClose the pidfd. Idempotent.");

static PyObject *close_pidfd(Child *self, PyObject *Py_UNUSED(unused))
{
	int fd = self->pidfd;

	self->pidfd = -1;
	if (fd >= 0)
		close(fd);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(take_pidfd_doc, "take_pidfd($self, /)\n--\n\nThe pidfd, which is the caller's to close from now on.");

static PyObject *take_pidfd(Child *self, PyObject *Py_UNUSED(unused))
{
	int fd = self->pidfd;

	self->pidfd = -1;
	return PyLong_FromLong(fd);
}

static PyObject *new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
	Child *self = (Child *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);

	if (self)
		self->pidfd = -1;
	return (PyObject *)self;
}

/* The type holds no cycles: lists of bytes. */
static void dealloc(Child *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);

	if (self->pidfd >= 0)
		close(self->pidfd);
	if (is_sharing(self)) /* the child writes into us: never freed */
		return;
	free_memory(self);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyMethodDef methods[] = {
	{"start", (PyCFunction)start, METH_VARARGS, start_doc},
	{"wait_detached", (PyCFunction)wait_detached, METH_VARARGS, wait_detached_doc},
	{"wait_exec", (PyCFunction)wait_exec, METH_VARARGS, wait_exec_doc},
	{"failure", (PyCFunction)failure, METH_NOARGS, failure_doc},
	{"reap", (PyCFunction)reap, METH_NOARGS, reap_doc},
	{"take_pidfd", (PyCFunction)take_pidfd, METH_NOARGS, take_pidfd_doc},
	{"close", (PyCFunction)close_pidfd, METH_NOARGS, close_doc},
	{NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
	{"pid", T_LONG, offsetof(Child, pid), READONLY, "0 before the start; negative: clone's errno"},
	{"pidfd", T_INT, offsetof(Child, pidfd), READONLY, "-1 if closed"},
	{"moved", T_INT, offsetof(Child, moved), READONLY, "it moved itself into the cgroup: clone3 was refused"},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {
	{Py_tp_doc, "A program on its way to its exec, and then the process that it is. Owns the pidfd."},
	{Py_tp_new, new},
	{Py_tp_dealloc, dealloc},
	{Py_tp_methods, methods},
	{Py_tp_members, members},
	{0, NULL},
};
static PyType_Spec spec = {"pinfold.spawn._spawn.Child", sizeof(Child), 0, Py_TPFLAGS_DEFAULT, slots};

/* ---- what else Python lacks -------------------------------------------------------------------- */

PyDoc_STRVAR(prctl_doc, "prctl(option, value, /)\n--\n\nprctl(2), for options that take one number. Raises OSError.");

static PyObject *call_prctl(PyObject *Py_UNUSED(module), PyObject *args)
{
	int option, result;
	unsigned long value;

	if (!PyArg_ParseTuple(args, "ik", &option, &value))
		return NULL;
	result = prctl(option, value, 0, 0, 0);
	return result < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(result);
}

PyDoc_STRVAR(signalfd_doc,
"signalfd(signals, /)\n--\n\n"
"A descriptor that is readable while one of these blocked signals is pending (Linux 2.6.22). Raises OSError.");

static PyObject *make_signalfd(PyObject *Py_UNUSED(module), PyObject *list)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	for (Py_ssize_t i = 0, n = PyList_Size(list); i < n; i++)
		sigaddset(&set, (int)PyLong_AsLong(PyList_GetItem(list, i)));
	if (PyErr_Occurred())
		return NULL;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyMethodDef functions[] = {
	{"prctl", call_prctl, METH_VARARGS, prctl_doc},
	{"signalfd", make_signalfd, METH_O, signalfd_doc},
	{NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
	int failed = !type || PyModule_AddObjectRef(module, "Child", type) < 0;

	Py_XDECREF(type);
	return failed ? -1 : 0;
}

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_spawn",
	.m_doc = "Start a program inside a cgroup (clone3, CLONE_INTO_CGROUP); and system calls that Python lacks.",
	.m_methods = functions,
	.m_slots = (PyModuleDef_Slot[]){{Py_mod_exec, prepare}, {0, NULL}},
};

PyMODINIT_FUNC PyInit__spawn(void)
{
	return PyModuleDef_Init(&module);
}
