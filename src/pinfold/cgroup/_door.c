/* _door: opening and reading files of a held cgroup directory, in one system call where Python needs two.
 *
 * The GIL is kept: each of these takes microseconds, and giving it up hands it to another thread, which costs more.
 * cgroup/files.py has the same in Python, for where this cannot be loaded. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096 /* kernfs hands out at most a page per read */

/* Not through a symlink, not out of the directory, not onto another mount (Linux 5.6). */
static int open_entry(int directory, const char *name, uint64_t flags)
{
	struct open_how how = {
		.flags = flags | O_CLOEXEC | O_NOFOLLOW,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
	};
	int fd, low;

	do
		fd = (int)syscall(SYS_openat2, directory, name, &how, sizeof how);
	while (fd < 0 && (errno == EINTR || errno == EAGAIN));
	if (fd < 0 || fd > 2)
		return fd;
	low = fd; /* commands inherit 0-2 */
	fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
	close(low);
	return fd;
}

static PyObject *oserror(const char *name)
{
	PyObject *text = PyUnicode_DecodeFSDefault(name);

	if (text) {
		PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, text);
		Py_DECREF(text);
	}
	return NULL;
}

PyDoc_STRVAR(open_in_doc,
"open_in(directory, name, flags, /)\n--\n\n"
"Open one entry of a directory, close-on-exec and above 2. Raises OSError: ENOSYS or EPERM where openat2 is refused.");

static PyObject *open_in(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *name, *result = NULL;
	int directory, flags, fd;

	if (!PyArg_ParseTuple(args, "iO&i:open_in", &directory, PyUnicode_FSConverter, &name, &flags))
		return NULL;
	fd = open_entry(directory, PyBytes_AsString(name), (uint64_t)flags);
	result = fd < 0 ? oserror(PyBytes_AsString(name)) : PyLong_FromLong(fd);
	Py_DECREF(name);
	return result;
}

/* The text of an open file from its start, as bytes. */
static PyObject *whole(int fd, const char *name)
{
	char page[PAGE];
	PyObject *text = NULL, *more, *joined;
	off_t at = 0;
	ssize_t n;

	for (;;) {
		do
			n = pread(fd, page, sizeof page, at);
		while (n < 0 && errno == EINTR);
		if (n < 0) {
			Py_XDECREF(text);
			return oserror(name);
		}
		if (!text) {
			if (!(text = PyBytes_FromStringAndSize(page, n)))
				return NULL;
		} else if (n) {
			if (!(more = PyBytes_FromStringAndSize(page, n))) {
				Py_DECREF(text);
				return NULL;
			}
			joined = PySequence_Concat(text, more);
			Py_DECREF(more);
			Py_DECREF(text);
			if (!(text = joined))
				return NULL;
		}
		if (n < (ssize_t)sizeof page)
			return text;
		at += n;
	}
}

PyDoc_STRVAR(read_in_doc,
"read_in(directory, name, /)\n--\n\nThe content of one file of a directory, as bytes. Raises OSError.");

static PyObject *read_in(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *name, *result;
	int directory, fd;

	if (!PyArg_ParseTuple(args, "iO&:read_in", &directory, PyUnicode_FSConverter, &name))
		return NULL;
	fd = open_entry(directory, PyBytes_AsString(name), O_RDONLY);
	if (fd < 0) {
		result = oserror(PyBytes_AsString(name));
	} else {
		result = whole(fd, PyBytes_AsString(name));
		close(fd);
	}
	Py_DECREF(name);
	return result;
}

PyDoc_STRVAR(reread_doc, "reread(fd, /)\n--\n\nThe content of an open file from its start, as bytes. Raises OSError.");

static PyObject *reread(PyObject *Py_UNUSED(module), PyObject *arg)
{
	int fd = (int)PyLong_AsLong(arg);

	return fd == -1 && PyErr_Occurred() ? NULL : whole(fd, "");
}

static PyMethodDef methods[] = {
	{"open_in", open_in, METH_VARARGS, open_in_doc},
	{"read_in", read_in, METH_VARARGS, read_in_doc},
	{"reread", reread, METH_O, reread_doc},
	{NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "_door",
	.m_doc = "Opening and reading the files of a held cgroup directory (openat2).",
	.m_methods = methods,
	.m_slots = (PyModuleDef_Slot[]){{0, NULL}},
};

PyMODINIT_FUNC PyInit__door(void)
{
	return PyModuleDef_Init(&module);
}
