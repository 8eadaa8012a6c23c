/* _spawn: the type Child, a program on its way to its exec and then the process that it is; Launcher,
 * the thread that a vfork sleeps in. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls.h"
#include "launch.h"

#ifndef P_PIDFD
#define P_PIDFD 3 /* Linux 5.4 */
#endif

static const char *const STEP_NAMES[STEP_COUNT] = {
	"clone", "cgroup", "fds",    "fds", "signals", "session",      "session", "cwd",
	"umask", "rlimits", "groups", "gid", "uid",     "no_new_privs", "exec",
};

typedef struct {
	PyObject_HEAD
	struct launch l;
	PyObject *strings[4]; /* what the child reads: argv, paths, env, steps */
	void *memory;         /* the arrays and the stacks */
} Child;

typedef struct {
	PyObject_HEAD
	int state; /* of the thread that serves */
	Child *child;
} Launcher;

enum { IDLE, LAUNCHING, CLOSED };

static PyTypeObject *launcher_type;

static int is_sharing(Child *self)
{
	return get_word(&self->l.c.sharing) != 0;
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

/* Out of the way of 0-2, if ours were closed: whoever opens them again would take the pidfd from us. */
static void clear_of_stdio(Child *self)
{
	int low = self->l.pidfd;

	if (low < 0 || low > 2)
		return;
	self->l.pidfd = fcntl(low, F_DUPFD_CLOEXEC, 3);
	if (self->l.pidfd < 0)
		self->l.pidfd = low; /* out of descriptors */
	else
		close(low);
}

PyDoc_STRVAR(start_doc,
"start($self, argv, paths, env, steps, cgroup, detach, orphan=False, launcher=None, /)\n--\n\n"
"Start a program in the cgroup whose directory is the fd `cgroup`, and return at once. Once.\n"
"`steps`: packed. `detach`: 1 + the highest descriptor that the steps need, if none of ours above it has to be\n"
"copied for the child; 0: copy them all. An orphan is in our cgroup, nobody's child, and has been exec'ed on return.\n"
"`launcher`: an idle one, whose thread is to do it by vfork.");

/* The pid is written by the kernel; the child wakes us, unless it is frozen before its first instruction. */
static void launch_by(Launcher *launcher, Child *self)
{
	launcher->child = (Child *)Py_NewRef((PyObject *)self);
	self->l.c.vfork = 1;
	Py_BEGIN_ALLOW_THREADS
	set_word(&launcher->state, LAUNCHING);
	while (!get_word(&self->l.c.pid))
		wait_word(&self->l.c.pid, 1, 0.001);
	Py_END_ALLOW_THREADS
}

static PyObject *start(Child *self, PyObject *args)
{
	PyObject *lists[3], *steps;
	Py_ssize_t sizes[3], total = 0;
	PyObject *launcher = Py_None;
	int orphan = 0;
	char *steps_at;
	char **at;

	if (!PyArg_ParseTuple(args, "O!O!O!Sii|pO:start", &PyList_Type, &lists[0], &PyList_Type, &lists[1], &PyList_Type,
			      &lists[2], &steps, &self->l.c.cgroup, &self->l.c.detach, &orphan, &launcher))
		return NULL;
	if (self->l.c.pid || self->memory) {
		PyErr_SetString(PyExc_RuntimeError, "started already");
		return NULL;
	}
	if (launcher != Py_None && (Py_TYPE(launcher) != launcher_type || get_word(&((Launcher *)launcher)->state))) {
		PyErr_SetString(PyExc_TypeError, "launcher: not an idle Launcher");
		return NULL;
	}
	if (PyBytes_AsStringAndSize(steps, &steps_at, (Py_ssize_t *)&self->l.c.steps_size) < 0)
		return NULL;
	self->l.c.steps = steps_at;
	for (int i = 0; i < 3; i++)
		total += (sizes[i] = PyList_Size(lists[i])) + 1;
	/* Not mmap: a fresh mapping costs page faults and a TLB flush in each start. */
	self->memory = malloc(2 * STACK + 16 + (size_t)total * sizeof *at);
	if (!self->memory)
		return PyErr_NoMemory();
	self->l.stack = (char *)(((uintptr_t)self->memory + 15) & ~(uintptr_t)15);
	at = (char **)(self->l.stack + 2 * STACK);
	self->l.c.argv = at;
	self->l.c.paths = self->l.c.argv + sizes[0] + 1;
	self->l.c.envp = self->l.c.paths + sizes[1] + 1;
	if (fill(self->l.c.argv, lists[0], sizes[0]) < 0 || fill(self->l.c.paths, lists[1], sizes[1]) < 0 ||
	    fill(self->l.c.envp, lists[2], sizes[2]) < 0) {
		free_memory(self);
		return NULL;
	}
	for (int i = 0; i < 3; i++)
		self->strings[i] = Py_NewRef(lists[i]);
	self->strings[3] = Py_NewRef(steps);
	self->l.c.detached = !self->l.c.detach;

	if (launcher != Py_None) {
		launch_by((Launcher *)launcher, self);
	} else {
		Py_BEGIN_ALLOW_THREADS
		launch(&self->l, orphan);
		Py_END_ALLOW_THREADS
	}
	clear_of_stdio(self);
	if (self->l.c.pid < 0)
		free_memory(self);
	Py_RETURN_NONE;
}

static PyObject *waited(Child *self, PyObject *args, int *word, int until)
{
	double seconds;
	int err;

	if (!PyArg_ParseTuple(args, "d", &seconds))
		return NULL;
	if (!self->l.c.pid || !!get_word(word) == until)
		Py_RETURN_TRUE;
	if (seconds <= 0)
		Py_RETURN_FALSE;
	Py_BEGIN_ALLOW_THREADS
	err = wait_word(word, until, seconds);
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
	return is_sharing(self) ? waited(self, args, &self->l.c.detached, 1) : Py_NewRef(Py_True);
}

PyDoc_STRVAR(wait_exec_doc,
"wait_exec($self, seconds, /)\n--\n\n"
"Wait until the child has exec'ed or ended, and our memory is our own again; False: not yet, or a signal came.");

static PyObject *wait_exec(Child *self, PyObject *args)
{
	return waited(self, args, &self->l.c.sharing, 0);
}

PyDoc_STRVAR(failure_doc,
"failure($self, /)\n--\n\n"
"(errno, step, path or None) of the step that failed, once the child has ended; None if it got as far as its exec.");

static PyObject *failure(Child *self, PyObject *Py_UNUSED(unused))
{
	PyObject *path = Py_None;

	if (!self->l.c.error || is_sharing(self))
		Py_RETURN_NONE;
	if (self->l.c.failed == STEP_EXEC && self->strings[1])
		path = PyList_GetItem(self->strings[1], self->l.c.path_index);
	return Py_BuildValue("isO", self->l.c.error, STEP_NAMES[self->l.c.failed], path);
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
	if (waitid(P_PIDFD, (id_t)self->l.pidfd, &info, WEXITED | WNOHANG | __WALL) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	if (!info.si_pid)
		Py_RETURN_NONE;
	return PyLong_FromLong(info.si_code == CLD_EXITED ? info.si_status : -info.si_status);
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nClose the pidfd. Idempotent.");

static PyObject *close_pidfd(Child *self, PyObject *Py_UNUSED(unused))
{
	int fd = self->l.pidfd;

	self->l.pidfd = -1;
	if (fd >= 0)
		close(fd);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(take_pidfd_doc, "take_pidfd($self, /)\n--\n\nThe pidfd, which is the caller's to close from now on.");

static PyObject *take_pidfd(Child *self, PyObject *Py_UNUSED(unused))
{
	int fd = self->l.pidfd;

	self->l.pidfd = -1;
	return PyLong_FromLong(fd);
}

static PyObject *new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
	Child *self = (Child *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);

	if (self)
		self->l.pidfd = -1;
	return (PyObject *)self;
}

/* The type holds no cycles: lists of bytes. */
static void dealloc(Child *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);

	if (self->l.pidfd >= 0)
		close(self->l.pidfd);
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
	{"pid", T_INT, offsetof(Child, l.c.pid), READONLY, "0 before the start; negative: clone's errno"},
	{"pidfd", T_INT, offsetof(Child, l.pidfd), READONLY, "-1 if closed"},
	{"moved", T_INT, offsetof(Child, l.moved), READONLY, "it moved itself into the cgroup: clone3 was refused"},
	{NULL, 0, 0, 0, NULL},
};

static PyType_Slot child_slots[] = {
	{Py_tp_doc, "A program on its way to its exec, and then the process that it is. Owns the pidfd."},
	{Py_tp_new, new},
	{Py_tp_dealloc, dealloc},
	{Py_tp_methods, methods},
	{Py_tp_members, members},
	{0, NULL},
};
static PyType_Spec child_spec = {"pinfold.spawn._spawn.Child", sizeof(Child), 0, Py_TPFLAGS_DEFAULT, child_slots};

/* ---- a thread for vfork ------------------------------------------------------------------------ */

PyDoc_STRVAR(serve_doc,
"serve($self, /)\n--\n\n"
"Wait for a child to start, start it, and sleep until it has exec'ed or ended. False: closed instead.");

static PyObject *serve(Launcher *self, PyObject *Py_UNUSED(unused))
{
	Py_BEGIN_ALLOW_THREADS
	while (get_word(&self->state) == IDLE)
		wait_word(&self->state, 1, 3600);
	if (self->state == LAUNCHING)
		launch(&self->child->l, 0);
	Py_END_ALLOW_THREADS
	if (self->state == CLOSED)
		Py_RETURN_FALSE;
	Py_CLEAR(self->child);
	self->state = IDLE;
	Py_RETURN_TRUE;
}

PyDoc_STRVAR(close_launcher_doc, "close($self, /)\n--\n\nLet the thread of an idle one go.");

static PyObject *close_launcher(Launcher *self, PyObject *Py_UNUSED(unused))
{
	if (self->state == IDLE)
		set_word(&self->state, CLOSED);
	Py_RETURN_NONE;
}

static PyObject *new_launcher(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
	return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

static void dealloc_launcher(Launcher *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);

	Py_CLEAR(self->child);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyMethodDef launcher_methods[] = {
	{"serve", (PyCFunction)serve, METH_NOARGS, serve_doc},
	{"close", (PyCFunction)close_launcher, METH_NOARGS, close_launcher_doc},
	{NULL, NULL, 0, NULL},
};
static PyType_Slot launcher_slots[] = {
	{Py_tp_doc, "Hands a Child to the thread that calls `serve`, which launches it."},
	{Py_tp_new, new_launcher},
	{Py_tp_dealloc, dealloc_launcher},
	{Py_tp_methods, launcher_methods},
	{0, NULL},
};
static PyType_Spec launcher_spec = {"pinfold.spawn._spawn.Launcher", sizeof(Launcher), 0, Py_TPFLAGS_DEFAULT,
				    launcher_slots};

/* ---- the module -------------------------------------------------------------------------------- */

static int prepare(PyObject *module)
{
	PyObject *child = PyType_FromModuleAndSpec(module, &child_spec, NULL);
	PyObject *launcher = PyType_FromModuleAndSpec(module, &launcher_spec, NULL);
	int failed = !child || !launcher || PyModule_AddObjectRef(module, "Child", child) < 0 ||
		     PyModule_AddObjectRef(module, "Launcher", launcher) < 0;

	launcher_type = (PyTypeObject *)launcher;
	Py_XDECREF(child);
	return failed ? -1 : 0;
}

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_spawn",
	.m_doc = "Start a program inside a cgroup (clone3, CLONE_INTO_CGROUP); and system calls that Python lacks.",
	.m_methods = calls,
	.m_slots = (PyModuleDef_Slot[]){{Py_mod_exec, prepare}, {0, NULL}},
};

PyMODINIT_FUNC PyInit__spawn(void)
{
	return PyModuleDef_Init(&module);
}
