/* System calls that Python lacks. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>

#include "calls.h"

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

PyMethodDef calls[] = {
	{"prctl", call_prctl, METH_VARARGS, prctl_doc},
	{"signalfd", make_signalfd, METH_O, signalfd_doc},
	{NULL, NULL, 0, NULL},
};
