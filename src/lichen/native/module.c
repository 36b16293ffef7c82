/* The shared library is a Python extension only so that wheels carry it: Python finds the file and
 * loads it with ctypes, which releases the interpreter lock during every call. */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "C kernels of lichen, called with ctypes.", -1,
    NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
