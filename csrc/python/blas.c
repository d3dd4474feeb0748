/* Products of OpenBLAS on numpy arrays, as the fits use them. */
#include "python/binding.h"

#include "linalg/blas.h"

static PyObject *gemm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a_object, *b_object;
    PyArrayObject *a = NULL, *b = NULL, *c = NULL;
    if (!PyArg_ParseTuple(args, "OO", &a_object, &b_object)
        || (a = dice_py_array(a_object, NPY_FLOAT64, 2, "a")) == NULL
        || (b = dice_py_array(b_object, NPY_FLOAT64, 2, "b")) == NULL) {
        goto done;
    }
    npy_intp shape[2] = {PyArray_DIM(a, 0), PyArray_DIM(b, 1)};
    const npy_intp inner = PyArray_DIM(a, 1);
    if (PyArray_DIM(b, 0) != inner) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "b: got %zd rows, want %zd as a has columns",
                                (Py_ssize_t)PyArray_DIM(b, 0), (Py_ssize_t)inner));
        goto done;
    }
    c = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (c == NULL) {
        goto done;
    }
    const double *a_data = PyArray_DATA(a), *b_data = PyArray_DATA(b);
    double *c_data = PyArray_DATA(c);
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = dice_blas_gemm((size_t)shape[0], (size_t)shape[1], (size_t)inner, a_data,
                                                   0, b_data, 0, 0.0, c_data);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        Py_CLEAR(c);
        dice_py_raise(status);
    }
done:
    Py_XDECREF(a);
    Py_XDECREF(b);
    return (PyObject *)c;
}

static PyObject *syrk(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object;
    PyArrayObject *x = NULL, *c = NULL;
    if (!PyArg_ParseTuple(args, "O", &object) || (x = dice_py_array(object, NPY_FLOAT64, 2, "x")) == NULL) {
        return NULL;
    }
    npy_intp shape[2] = {PyArray_DIM(x, 1), PyArray_DIM(x, 1)};
    const npy_intp rows = PyArray_DIM(x, 0);
    c = (PyArrayObject *)PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (c == NULL) {
        goto done;
    }
    const double *x_data = PyArray_DATA(x);
    double *c_data = PyArray_DATA(c);
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = dice_blas_syrk((size_t)shape[0], (size_t)rows, x_data, 0.0, c_data);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        Py_CLEAR(c);
        dice_py_raise(status);
    }
done:
    Py_DECREF(x);
    return (PyObject *)c;
}

static PyObject *threads(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(dice_blas_threads());
}

static PyMethodDef methods[] = {
    {"_blas_gemm", gemm, METH_VARARGS, "_blas_gemm(a (m, k), b (k, n)) -> float64 (m, n): their product."},
    {"_blas_syrk", syrk, METH_VARARGS, "_blas_syrk(x (k, n)) -> float64 (n, n): x' x."},
    {"_blas_threads", threads, METH_NOARGS,
     "_blas_threads() -> int: OpenBLAS's number of threads outside our calls."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_blas(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
