/* Double products and decompositions on numpy arrays, for the fits. See linalg/blas.h. */
#include "python/binding.h"

#include "linalg/blas.h"

static PyObject *gemm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a_object, *b_object, *c = NULL;
    PyArrayObject *a = NULL, *b = NULL;
    if (!PyArg_ParseTuple(args, "OO", &a_object, &b_object)
        || (a = dice_py_array(a_object, NPY_FLOAT64, 2, "a")) == NULL
        || (b = dice_py_array(b_object, NPY_FLOAT64, 2, "b")) == NULL) {
        goto done;
    }
    const npy_intp shape[2] = {PyArray_DIM(a, 0), PyArray_DIM(b, 1)}, inner = PyArray_DIM(a, 1);
    if (PyArray_DIM(b, 0) != inner) {
        dice_py_check(dice_fail(DICE_E_INPUT, "b: got %zd rows, want %zd as a has columns",
                                (Py_ssize_t)PyArray_DIM(b, 0), (Py_ssize_t)inner));
        goto done;
    }
    c = PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (c != NULL) {
        double *to = dice_py_data(c);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_blas_gemm((size_t)shape[0], (size_t)shape[1], (size_t)inner, PyArray_DATA(a), 0,
                                PyArray_DATA(b), 0, 0.0, to);
        Py_END_ALLOW_THREADS
        c = dice_py_result(status, c);
    }
done:
    Py_XDECREF(a);
    Py_XDECREF(b);
    return c;
}

static PyObject *syrk(PyObject *Py_UNUSED(self), PyObject *object)
{
    PyArrayObject *x = dice_py_array(object, NPY_FLOAT64, 2, "x");
    if (x == NULL) {
        return NULL;
    }
    const npy_intp rows = PyArray_DIM(x, 0), shape[2] = {PyArray_DIM(x, 1), PyArray_DIM(x, 1)};
    PyObject *c = PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (c != NULL) {
        double *to = dice_py_data(c);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_blas_syrk((size_t)shape[0], (size_t)rows, PyArray_DATA(x), 0.0, to);
        Py_END_ALLOW_THREADS
        c = dice_py_result(status, c);
    }
    Py_DECREF(x);
    return c;
}

static PyObject *threads(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(dice_blas_threads());
}

static PyObject *eigen(PyObject *Py_UNUSED(self), PyObject *object)
{
    PyArrayObject *a = dice_py_array(object, NPY_FLOAT64, 2, "a");
    PyObject *vectors = NULL, *values = NULL, *result = NULL;
    if (a == NULL) {
        return NULL;
    }
    const npy_intp side = PyArray_DIM(a, 0);
    if (PyArray_DIM(a, 1) != side) {
        dice_py_check(dice_fail(DICE_E_INPUT, "a: is not square"));
        goto done;
    }
    vectors = PyArray_NewCopy(a, NPY_CORDER);
    values = PyArray_SimpleNew(1, &side, NPY_FLOAT64);
    if (vectors != NULL && values != NULL) {
        double *to_vectors = dice_py_data(vectors), *to_values = dice_py_data(values);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_blas_eigen((size_t)side, to_vectors, to_values);
        Py_END_ALLOW_THREADS
        if (dice_py_check(status) == 0) {
            result = PyTuple_Pack(2, values, vectors);
        }
    }
done:
    Py_DECREF(a);
    Py_XDECREF(vectors);
    Py_XDECREF(values);
    return result;
}

static PyObject *least_norm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a_object, *b_object, *x = NULL, *result = NULL;
    PyArrayObject *a = NULL, *b = NULL;
    double cut;
    if (!PyArg_ParseTuple(args, "OOd", &a_object, &b_object, &cut)
        || (a = dice_py_array(a_object, NPY_FLOAT64, 2, "W")) == NULL
        || (b = dice_py_array(b_object, NPY_FLOAT64, 1, "b")) == NULL) {
        goto done;
    }
    const npy_intp rows = PyArray_DIM(a, 0), columns = PyArray_DIM(a, 1);
    if (PyArray_DIM(b, 0) != rows) {
        dice_py_check(dice_fail(DICE_E_INPUT, "b: got %zd values for %zd rows", (Py_ssize_t)PyArray_DIM(b, 0),
                                (Py_ssize_t)rows));
        goto done;
    }
    if (!(cut >= 0 && cut < 1)) {
        dice_py_check(
            dice_fail(DICE_E_INPUT, "cut: got %g, want a share of the largest singular value", cut));
        goto done;
    }
    x = PyArray_SimpleNew(1, &columns, NPY_FLOAT64);
    if (x != NULL) {
        double *to = dice_py_data(x);
        size_t rank = 0;
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_blas_least_norm((size_t)rows, (size_t)columns, PyArray_DATA(a), PyArray_DATA(b), cut,
                                      to, &rank);
        Py_END_ALLOW_THREADS
        x = dice_py_result(status, x);
        result = x == NULL ? NULL : Py_BuildValue("Nn", x, (Py_ssize_t)rank);
    }
done:
    Py_XDECREF(a);
    Py_XDECREF(b);
    return result;
}

static PyMethodDef methods[] = {
    {"_blas_gemm", gemm, METH_VARARGS,
     "_blas_gemm($module, a, b, /)\n--\n\n"
     "The product of a, float64 (M, K), and b, float64 (K, N): float64 (M, N)."},
    {"_blas_syrk", syrk, METH_O,
     "_blas_syrk($module, x, /)\n--\n\n"
     "x' x of x, float64 (K, N): float64 (N, N), symmetric to the bit."},
    {"_blas_threads", threads, METH_NOARGS,
     "_blas_threads($module, /)\n--\n\n"
     "How many threads OpenBLAS uses when others call it (our calls use one)."},
    {"eigen", eigen, METH_O,
     "eigen($module, a, /)\n--\n\n"
     "Eigenvalues and eigenvectors of a symmetric matrix a, float64 (N, N): (values, vectors).\n\n"
     "values: float64 (N,), rising; vectors: float64 (N, N), one a row."},
    {"least_norm", least_norm, METH_VARARGS,
     "least_norm($module, W, b, cut, /)\n--\n\n"
     "(pinv(W) b, rank of W): of all x that minimise |W x - b|, the one of least norm.\n\n"
     "Singular values of W of at most cut times the largest count as 0.\n\n"
     "W: float64 (M, D); b: float64 (M,); x: float64 (D,)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_linalg(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
