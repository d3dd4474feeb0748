/* Scores against a bank of training features. See ood/scores/bank.h. */
#include "python/binding.h"

#include "ood/scores/bank.h"

/* A finite float32 matrix with at least one column; -1 as `rows` or `columns` stands for any number. */
static PyArrayObject *read_matrix(PyObject *object, Py_ssize_t rows, Py_ssize_t columns, const char *argument)
{
    PyArrayObject *array = dice_py_array(object, NPY_FLOAT32, 2, argument);
    if (array == NULL) {
        return NULL;
    }
    const Py_ssize_t n = PyArray_DIM(array, 0), width = PyArray_DIM(array, 1);
    dice_status status = DICE_OK;
    if (rows >= 0 && n != rows) {
        status = dice_fail(DICE_E_INPUT, "%s: got shape (%zd, %zd), want %zd rows", argument, n, width, rows);
    } else if (columns >= 0 && width != columns) {
        status = dice_fail(DICE_E_INPUT, "%s: got shape (%zd, %zd), want %zd columns", argument, n, width,
                           columns);
    } else if (width == 0) {
        status = dice_fail(DICE_E_INPUT, "%s: has no columns", argument);
    }
    return (PyArrayObject *)dice_py_result(status, (PyObject *)array);
}

static PyObject *bank_norms(PyObject *Py_UNUSED(self), PyObject *object)
{
    PyArrayObject *rows = read_matrix(object, -1, -1, "h");
    if (rows == NULL) {
        return NULL;
    }
    PyObject *scale = PyArray_SimpleNew(1, PyArray_DIMS(rows), NPY_FLOAT64);
    if (scale != NULL) {
        double *to = dice_py_data(scale);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_bank_norms(PyArray_DATA(rows), (size_t)PyArray_DIM(rows, 0),
                                 (size_t)PyArray_DIM(rows, 1), to);
        Py_END_ALLOW_THREADS
        scale = dice_py_result(status, scale);
    }
    Py_DECREF(rows);
    return scale;
}

/* Reads the bank's rows (M, D) and scales (M); the caller releases both arrays, on failure too. The rows,
 * perhaps a large file, are not searched for NaN: they were when the bank was filled. */
static int read_bank(PyObject *rows_object, PyObject *scale_object, const char *device, PyArrayObject **rows,
                     PyArrayObject **scale, dice_bank *bank)
{
    *rows = dice_py_array_any(rows_object, NPY_FLOAT32, 2, "bank");
    *scale = *rows == NULL ? NULL : dice_py_array(scale_object, NPY_FLOAT64, 1, "scale");
    if (*scale == NULL) {
        return -1;
    }
    *bank = (dice_bank){.rows = PyArray_DATA(*rows),
                        .scale = PyArray_DATA(*scale),
                        .n = (size_t)PyArray_DIM(*rows, 0),
                        .features = (size_t)PyArray_DIM(*rows, 1),
                        .device = device};
    if (PyArray_DIM(*scale, 0) != PyArray_DIM(*rows, 0) || bank->n == 0 || bank->n > UINT32_MAX
        || bank->features == 0) {
        return dice_py_check(dice_fail(
            DICE_E_INPUT, "bank: got %zu rows of %zu features with %zd scales, want 1 to 2^32 - 1 rows",
            bank->n, bank->features, (Py_ssize_t)PyArray_DIM(*scale, 0)));
    }
    return 0;
}

typedef dice_status (*nearest_score)(const dice_bank *bank, const float *h, size_t n, size_t k, double *out);

/* bank_knn and bank_guide: a score of the k nearest rows. */
static PyObject *nearest(PyObject *args, nearest_score score)
{
    PyObject *rows_object, *scale_object, *h_object, *result = NULL;
    const char *device = "cpu";
    Py_ssize_t k;
    PyArrayObject *rows = NULL, *scale = NULL, *h = NULL;
    dice_bank bank;
    if (!PyArg_ParseTuple(args, "OOOn|s", &rows_object, &scale_object, &h_object, &k, &device)
        || read_bank(rows_object, scale_object, device, &rows, &scale, &bank) < 0
        || (h = read_matrix(h_object, -1, (Py_ssize_t)bank.features, "h")) == NULL) {
        goto done;
    }
    if (k < 1 || (size_t)k > bank.n) {
        dice_py_check(dice_fail(DICE_E_INPUT, "k: got %zd, want 1 to %zu", k, bank.n));
    } else if ((result = PyArray_SimpleNew(1, PyArray_DIMS(h), NPY_FLOAT64)) != NULL) {
        double *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = score(&bank, PyArray_DATA(h), (size_t)PyArray_DIM(h, 0), (size_t)k, to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
done:
    Py_XDECREF(rows);
    Py_XDECREF(scale);
    Py_XDECREF(h);
    return result;
}

static PyObject *bank_knn(PyObject *Py_UNUSED(self), PyObject *args)
{
    return nearest(args, dice_bank_knn);
}

static PyObject *bank_guide(PyObject *Py_UNUSED(self), PyObject *args)
{
    return nearest(args, dice_bank_guide);
}

static PyObject *bank_relation(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *rows_object, *scale_object, *row_p_object, *h_object, *p_object, *result = NULL;
    PyArrayObject *rows = NULL, *scale = NULL, *row_p = NULL, *h = NULL, *p = NULL;
    double least, power;
    const char *device = "cpu";
    dice_bank bank;
    if (!PyArg_ParseTuple(args, "OOOOOdd|s", &rows_object, &scale_object, &row_p_object, &h_object, &p_object,
                          &least, &power, &device)
        || read_bank(rows_object, scale_object, device, &rows, &scale, &bank) < 0
        || (row_p = read_matrix(row_p_object, (Py_ssize_t)bank.n, -1, "bank_p")) == NULL
        || (h = read_matrix(h_object, -1, (Py_ssize_t)bank.features, "h")) == NULL
        || (p = read_matrix(p_object, PyArray_DIM(h, 0), PyArray_DIM(row_p, 1), "p")) == NULL) {
        goto done;
    }
    result = PyArray_SimpleNew(1, PyArray_DIMS(h), NPY_FLOAT64);
    if (result != NULL) {
        double *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_bank_relation(&bank, PyArray_DATA(row_p), (size_t)PyArray_DIM(row_p, 1),
                                    PyArray_DATA(h), PyArray_DATA(p), (size_t)PyArray_DIM(h, 0), least, power,
                                    to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
done:
    Py_XDECREF(rows);
    Py_XDECREF(scale);
    Py_XDECREF(row_p);
    Py_XDECREF(h);
    Py_XDECREF(p);
    return result;
}

static PyMethodDef methods[] = {
    {"bank_norms", bank_norms, METH_O,
     "bank_norms($module, h, /)\n--\n\n"
     "1 / norm of each row of h, float32 (M, D), and 0 for a row of zeros: float64 (M,)."},
    {"bank_knn", bank_knn, METH_VARARGS,
     "bank_knn($module, bank, scale, h, k, device=\"cpu\", /)\n--\n\n"
     "The k-th smallest squared distance between h / norm(h) and the bank's rows / norm: float64 (N,).\n\n"
     "bank: float32 (M, D); scale: float64 (M,), bank_norms of it; h: float32 (N, D); k: from 1 to M;\n"
     "device: where the products are computed."},
    {"bank_guide", bank_guide, METH_VARARGS,
     "bank_guide($module, bank, scale, h, k, device=\"cpu\", /)\n--\n\n"
     "The mean of the k largest products of h / norm(h) with the bank's rows * scale: float64 (N,).\n\n"
     "bank: float32 (M, D); scale: float64 (M,); h: float32 (N, D); k: from 1 to M; device: where the\n"
     "products are computed."},
    {"bank_relation", bank_relation, METH_VARARGS,
     "bank_relation($module, bank, scale, bank_p, h, p, least, power, device=\"cpu\", /)\n--\n\n"
     "The sum of v ** power over the rows of the bank whose v = max(0, cosine(h, row)) * (p . p_row)\n"
     "is above `least`: float64 (N,).\n\n"
     "bank: float32 (M, D); scale: float64 (M,), bank_norms of it; bank_p: float32 (M, C), each row's\n"
     "probabilities; h: float32 (N, D); p: float32 (N, C); device: where the products are computed."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_bank(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
