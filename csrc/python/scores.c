/* Scores of rows. See ood/score.h. */
#include "python/binding.h"

#include "ood/scores/bins.h"
#include "ood/scores/score.h"
#include "ood/scores/klm.h"

enum { MAX_ARRAYS = 4 };

int dice_py_rows(PyObject *object, const char *argument, PyArrayObject **array, dice_rows *out)
{
    const int is_double = PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_FLOAT64;
    *array = dice_py_array(object, is_double ? NPY_FLOAT64 : NPY_FLOAT32, 2, argument);
    if (*array == NULL) {
        return 0;
    }
    if (PyArray_DIM(*array, 1) == 0) {
        Py_CLEAR(*array);
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: has no columns", argument));
        return 0;
    }
    *out = (dice_rows){.data = PyArray_DATA(*array),
                       .is_double = is_double,
                       .n = (size_t)PyArray_DIM(*array, 0),
                       .width = (size_t)PyArray_DIM(*array, 1)};
    return 1;
}

/* How many numbers an array of that shape holds, and of which type; *shape moves behind it. */
static size_t size_of(const char **shape, size_t classes, size_t features, int *typenum)
{
    size_t size = 1;
    *typenum = **shape == 'f' ? NPY_FLOAT32 : NPY_FLOAT64;
    *shape += **shape == 'f';
    for (; **shape != '\0' && **shape != ' '; (*shape)++) {
        size *= **shape == 'C' ? classes : **shape == 'D' ? features : (size_t)(**shape - '0');
    }
    while (**shape == ' ') {
        (*shape)++;
    }
    return size;
}

/* score(rule, z, h, arrays, numbers) */
static PyObject *score(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name;
    PyObject *z_object, *h_object, *array_tuple, *number_tuple, *result = NULL;
    if (!PyArg_ParseTuple(args, "sOOO!O!", &name, &z_object, &h_object, &PyTuple_Type, &array_tuple,
                          &PyTuple_Type, &number_tuple)) {
        return NULL;
    }
    const dice_score_rule *rule = dice_score_find(name);
    if (rule == NULL || PyTuple_GET_SIZE(number_tuple) != rule->numbers || rule->numbers > MAX_ARRAYS) {
        return dice_py_raise(
            dice_fail(DICE_E_INPUT, "rule: got %s with %zd numbers", name, PyTuple_GET_SIZE(number_tuple)));
    }
    PyArrayObject *z_array = NULL, *h_array = NULL, *arrays[MAX_ARRAYS] = {NULL};
    const double *data[MAX_ARRAYS] = {NULL};
    double numbers[MAX_ARRAYS] = {0};
    dice_rows z = {0}, h = {0};
    const int reads_z = rule->reads[0] == 'z', reads_h = rule->reads[reads_z] == 'h';
    if ((reads_z && !dice_py_rows(z_object, "z", &z_array, &z))
        || (reads_h && !dice_py_rows(h_object, "h", &h_array, &h))) {
        goto done;
    }
    if (reads_z && reads_h && z.n != h.n) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "z: got %zu rows, h has %zu", z.n, h.n));
        goto done;
    }
    for (Py_ssize_t i = 0; i < rule->numbers; i++) {
        numbers[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(number_tuple, i));
        if (numbers[i] == -1 && PyErr_Occurred()) {
            goto done;
        }
    }
    const char *shape = rule->arrays;
    for (Py_ssize_t i = 0; *shape != '\0'; i++) {
        int typenum;
        const size_t want = size_of(&shape, z.width, h.width, &typenum);
        PyObject *object = i < PyTuple_GET_SIZE(array_tuple) ? PyTuple_GET_ITEM(array_tuple, i) : Py_None;
        arrays[i] = (PyArrayObject *)PyArray_FROM_OTF(object, typenum, NPY_ARRAY_IN_ARRAY);
        if (arrays[i] == NULL) {
            goto done;
        }
        if ((size_t)PyArray_SIZE(arrays[i]) != want) {
            dice_py_raise(dice_fail(
                DICE_E_INPUT, "%s: fitted array %zd has %zd numbers, %zu classes and %zu features want %zu",
                name, i, (Py_ssize_t)PyArray_SIZE(arrays[i]), z.width, h.width, want));
            goto done;
        }
        data[i] = PyArray_DATA(arrays[i]);
    }
    npy_intp shape_out[2] = {(npy_intp)(reads_z ? z.n : h.n), rule->outputs};
    result = PyArray_SimpleNew(rule->outputs == 1 ? 1 : 2, shape_out, NPY_FLOAT64);
    if (result != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_score_run(rule, reads_z ? &z : NULL, reads_h ? &h : NULL, data,
                                                       numbers, PyArray_DATA((PyArrayObject *)result));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
done:
    Py_XDECREF(z_array);
    Py_XDECREF(h_array);
    for (int i = 0; i < MAX_ARRAYS; i++) {
        Py_XDECREF(arrays[i]);
    }
    return result;
}

/* score_klm(z, log_typical) */
static PyObject *score_klm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *z_object, *typical_object, *result = NULL;
    PyArrayObject *z_array = NULL, *typical = NULL;
    dice_rows z;
    if (!PyArg_ParseTuple(args, "OO", &z_object, &typical_object)
        || !dice_py_rows(z_object, "z", &z_array, &z)
        || (typical = dice_py_array(typical_object, NPY_FLOAT64, 2, "log_typical")) == NULL) {
        goto done;
    }
    if ((size_t)PyArray_DIM(typical, 1) != z.width || PyArray_DIM(typical, 0) == 0) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "z: got %zu classes, was fitted with %zd", z.width,
                                (Py_ssize_t)PyArray_DIM(typical, 1)));
    } else if ((result = PyArray_SimpleNew(1, PyArray_DIMS(z_array), NPY_FLOAT64)) != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_score_klm(&z, PyArray_DATA(typical),
                                                       (size_t)PyArray_DIM(typical, 0),
                                                       PyArray_DATA((PyArrayObject *)result));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
done:
    Py_XDECREF(z_array);
    Py_XDECREF(typical);
    return result;
}

/* count_bins(rows, low, high, counts) */
static PyObject *count_bins(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object, *counts;
    double low, high;
    PyArrayObject *array;
    dice_rows rows;
    if (!PyArg_ParseTuple(args, "OddO!", &object, &low, &high, &PyArray_Type, &counts)
        || !dice_py_rows(object, "rows", &array, &rows)) {
        return NULL;
    }
    PyArrayObject *to = (PyArrayObject *)counts;
    dice_status status;
    if (PyArray_TYPE(to) != NPY_FLOAT64 || PyArray_NDIM(to) != 2 || !PyArray_ISCARRAY(to)
        || (size_t)PyArray_DIM(to, 0) != rows.n || PyArray_DIM(to, 1) == 0 || !(low < high)) {
        status = dice_fail(DICE_E_INPUT, "counts: want a writable float64 array of %zu rows, and low < high",
                           rows.n);
    } else {
        Py_BEGIN_ALLOW_THREADS status = dice_bins_count(&rows, low, high, (size_t)PyArray_DIM(to, 1),
                                                        PyArray_DATA(to));
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(array);
    if (status != DICE_OK) {
        return dice_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"score", score, METH_VARARGS,
     "score(rule, z, h, arrays, numbers) -> float64 (N,) or (N, outputs): a row rule's scores of logits z "
     "(N, C) and "
     "features h (N, D), float32 or float64; None for what the rule does not read. The same bits for every "
     "N."},
    {"count_bins", count_bins, METH_VARARGS,
     "count_bins(rows, low, high, counts): counts (N, bins) += numbers of each row in each equal part of "
     "[low, high)."},
    {"score_klm", score_klm, METH_VARARGS,
     "score_klm(z, log_typical) -> float64 (N,): -min over k of KL(softmax(z) || d_k), log_typical (K, C) = "
     "log d_k."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_scores(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
