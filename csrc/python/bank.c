/* Scores against a bank, and activation rules. See ood/bank.h and ood/activation.h. */
#include "python/binding.h"

#include <string.h>

#include "ood/scores/activation.h"
#include "ood/scores/bank.h"

/* (N, columns) float32; columns < 0 = any. */
static PyArrayObject *matrix(PyObject *object, Py_ssize_t rows, Py_ssize_t columns, const char *argument)
{
    PyArrayObject *array = dice_py_array(object, NPY_FLOAT32, 2, argument);
    if (array != NULL
        && ((rows >= 0 && PyArray_DIM(array, 0) != rows) || (columns >= 0 && PyArray_DIM(array, 1) != columns)
            || PyArray_DIM(array, 1) == 0)) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: got shape (%zd, %zd), want %zd columns", argument,
                                (Py_ssize_t)PyArray_DIM(array, 0), (Py_ssize_t)PyArray_DIM(array, 1),
                                columns));
        Py_CLEAR(array);
    }
    return array;
}

static PyObject *bank_norms(PyObject *Py_UNUSED(self), PyObject *object)
{
    PyArrayObject *rows = matrix(object, -1, -1, "h");
    PyObject *scale = rows == NULL ? NULL : PyArray_SimpleNew(1, PyArray_DIMS(rows), NPY_FLOAT64);
    if (scale != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_bank_norms(PyArray_DATA(rows), (size_t)PyArray_DIM(rows, 0),
                                                        (size_t)PyArray_DIM(rows, 1),
                                                        PyArray_DATA((PyArrayObject *)scale));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(scale);
            dice_py_raise(status);
        }
    }
    Py_XDECREF(rows);
    return scale;
}

/* The bank is not searched for NaN again: it was when it was filled. */
static int bank_of(PyObject *rows_object, PyObject *scale_object, const char *device, PyArrayObject **rows,
                   PyArrayObject **scale, dice_bank *bank)
{
    *scale = NULL;
    *rows = dice_py_array_any(rows_object, NPY_FLOAT32, 2, "bank");
    if (*rows == NULL || (*scale = dice_py_array_any(scale_object, NPY_FLOAT64, 1, "scale")) == NULL) {
        return 0;
    }
    *bank = (dice_bank){.rows = PyArray_DATA(*rows),
                        .scale = PyArray_DATA(*scale),
                        .n = (size_t)PyArray_DIM(*rows, 0),
                        .features = (size_t)PyArray_DIM(*rows, 1),
                        .device = device};
    if (PyArray_DIM(*scale, 0) != PyArray_DIM(*rows, 0) || bank->n == 0 || bank->n > UINT32_MAX
        || bank->features == 0) {
        dice_py_raise(dice_fail(DICE_E_INPUT,
                                "bank: got %zu rows of %zu features with %zd scales, want 1 to 2^32 - 1 rows",
                                bank->n, bank->features, (Py_ssize_t)PyArray_DIM(*scale, 0)));
        return 0;
    }
    return 1;
}

/* bank_knn(bank, scale, h, k, device) or bank_guide(...) */
static PyObject *nearest(PyObject *args, int guide)
{
    PyObject *rows_object, *scale_object, *h_object, *result = NULL;
    const char *device = "cpu";
    Py_ssize_t k;
    PyArrayObject *rows = NULL, *scale = NULL, *h = NULL;
    dice_bank bank;
    if (!PyArg_ParseTuple(args, "OOOn|s", &rows_object, &scale_object, &h_object, &k, &device)
        || !bank_of(rows_object, scale_object, device, &rows, &scale, &bank)
        || (h = matrix(h_object, -1, (Py_ssize_t)bank.features, "h")) == NULL) {
        goto done;
    }
    if (k < 1 || (size_t)k > bank.n) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "k: got %zd, want 1 to %zu", k, bank.n));
    } else if ((result = PyArray_SimpleNew(1, PyArray_DIMS(h), NPY_FLOAT64)) != NULL) {
        dice_status status;
        double *out = PyArray_DATA((PyArrayObject *)result);
        Py_BEGIN_ALLOW_THREADS status = (guide ? dice_bank_guide : dice_bank_knn)(
            &bank, PyArray_DATA(h), (size_t)PyArray_DIM(h, 0), (size_t)k, out);
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
done:
    Py_XDECREF(rows);
    Py_XDECREF(scale);
    Py_XDECREF(h);
    return result;
}

static PyObject *bank_knn(PyObject *Py_UNUSED(self), PyObject *args)
{
    return nearest(args, 0);
}

static PyObject *bank_guide(PyObject *Py_UNUSED(self), PyObject *args)
{
    return nearest(args, 1);
}

/* bank_relation(bank, scale, bank_p, h, p, least, power, device) */
static PyObject *bank_relation(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *rows_object, *scale_object, *row_p_object, *h_object, *p_object, *result = NULL;
    PyArrayObject *rows = NULL, *scale = NULL, *row_p = NULL, *h = NULL, *p = NULL;
    double least, power;
    const char *device = "cpu";
    dice_bank bank;
    if (!PyArg_ParseTuple(args, "OOOOOdd|s", &rows_object, &scale_object, &row_p_object, &h_object, &p_object,
                          &least, &power, &device)
        || !bank_of(rows_object, scale_object, device, &rows, &scale, &bank)
        || (row_p = matrix(row_p_object, (Py_ssize_t)bank.n, -1, "bank")) == NULL
        || (h = matrix(h_object, -1, (Py_ssize_t)bank.features, "h")) == NULL
        || (p = matrix(p_object, PyArray_DIM(h, 0), PyArray_DIM(row_p, 1), "p")) == NULL) {
        goto done;
    }
    result = PyArray_SimpleNew(1, PyArray_DIMS(h), NPY_FLOAT64);
    if (result != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_bank_relation(
            &bank, PyArray_DATA(row_p), (size_t)PyArray_DIM(row_p, 1), PyArray_DATA(h), PyArray_DATA(p),
            (size_t)PyArray_DIM(h, 0), least, power, PyArray_DATA((PyArrayObject *)result));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
done:
    Py_XDECREF(rows);
    Py_XDECREF(scale);
    Py_XDECREF(row_p);
    Py_XDECREF(h);
    Py_XDECREF(p);
    return result;
}

/* activate(rule, h, a, b) */
static PyObject *activate(PyObject *Py_UNUSED(self), PyObject *args)
{
    static const char *const names[] = {"ash-p", "ash-b", "ash-s", "scale", "vra", "vra-clip"};
    const char *name;
    PyObject *h_object, *result = NULL;
    double a, b;
    if (!PyArg_ParseTuple(args, "sOdd", &name, &h_object, &a, &b)) {
        return NULL;
    }
    size_t rule = 0;
    while (rule < sizeof names / sizeof *names && strcmp(name, names[rule]) != 0) {
        rule++;
    }
    if (rule == sizeof names / sizeof *names) {
        return dice_py_raise(dice_fail(DICE_E_INPUT, "activation: got %s", name));
    }
    PyArrayObject *h = matrix(h_object, -1, -1, "h");
    if (h != NULL && (result = PyArray_SimpleNew(2, PyArray_DIMS(h), NPY_FLOAT32)) != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_activation_run(
            (dice_activation)rule, PyArray_DATA(h), (size_t)PyArray_DIM(h, 0), (size_t)PyArray_DIM(h, 1), a,
            b, PyArray_DATA((PyArrayObject *)result));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
    Py_XDECREF(h);
    return result;
}

static PyMethodDef methods[] = {
    {"bank_norms", bank_norms, METH_O, "bank_norms(h) -> float64 (M,): 1 / norm of each row, 0 for zeros."},
    {"bank_knn", bank_knn, METH_VARARGS,
     "bank_knn(bank, scale, h, k, device=\"cpu\") -> float64 (N,): k-th smallest squared distance of the "
     "unit vectors."},
    {"bank_guide", bank_guide, METH_VARARGS,
     "bank_guide(bank, scale, h, k, device=\"cpu\") -> float64 (N,): mean of the k largest products of h / "
     "norm(h) with scaled rows."},
    {"bank_relation", bank_relation, METH_VARARGS,
     "bank_relation(bank, scale, bank_p, h, p, least, power, device=\"cpu\") -> float64 (N,)"},
    {"activate", activate, METH_VARARGS,
     "activate(rule, h, a, b) -> float32 (N, D): ash-p, ash-b, ash-s, scale at percentile a; vra, vra-clip "
     "from a to b."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_bank(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
