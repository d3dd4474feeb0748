/* Scores of an image's logits and features, and rules that reshape features. See ood/scores. */
#include "python/binding.h"

#include <math.h>
#include <string.h>

#include "ood/scores/activation.h"
#include "ood/scores/bins.h"
#include "ood/scores/klm.h"
#include "ood/scores/score.h"

enum { MAX_ARRAYS = 4, MAX_DIMS = 4 }; /* arrays and numbers that a rule reads; dimensions of an array */

/* The type, shape and number of dimensions of the next array of a rule's `arrays`; *text moves on to the one
 * after it. */
static int next_array(const char **text, size_t classes, size_t features, int *typenum,
                      size_t shape[MAX_DIMS])
{
    int ndim = 0;
    *typenum = **text == 'f' ? NPY_FLOAT32 : NPY_FLOAT64;
    *text += **text == 'f';
    for (; **text != '\0' && **text != ' '; (*text)++) {
        shape[ndim++] = **text == 'C' ? classes : **text == 'D' ? features : (size_t)(**text - '0');
    }
    while (**text == ' ') {
        (*text)++;
    }
    return ndim;
}

/* numbers[i] = the rule's parameters. */
static int read_numbers(const dice_score_rule *rule, PyObject *tuple, double numbers[MAX_ARRAYS])
{
    if (PyTuple_GET_SIZE(tuple) != rule->numbers || rule->numbers > MAX_ARRAYS) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "rule: got %s with %zd numbers", rule->name, PyTuple_GET_SIZE(tuple)));
    }
    for (Py_ssize_t i = 0; i < rule->numbers; i++) {
        numbers[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, i));
        if (numbers[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
        if (!isfinite(numbers[i])) {
            return dice_py_check(dice_fail(DICE_E_INPUT, "%s: number %zd is %g", rule->name, i, numbers[i]));
        }
    }
    return 0;
}

/* arrays[i] = the fitted arrays; the caller releases them, on failure too. */
static int read_fitted(const dice_score_rule *rule, PyObject *tuple, size_t classes, size_t features,
                       PyArrayObject *arrays[MAX_ARRAYS])
{
    const char *text = rule->arrays;
    Py_ssize_t i = 0;
    for (; *text != '\0'; i++) {
        int typenum;
        size_t shape[MAX_DIMS];
        const int ndim = next_array(&text, classes, features, &typenum, shape);
        char argument[64];
        snprintf(argument, sizeof argument, "%s: fitted array %d", rule->name, (int)i);
        if (i >= PyTuple_GET_SIZE(tuple)) {
            return dice_py_check(dice_fail(DICE_E_INPUT, "%s: is missing", argument));
        }
        arrays[i] = dice_py_array_any(PyTuple_GET_ITEM(tuple, i), typenum, ndim, argument);
        if (arrays[i] == NULL) {
            return -1;
        }
        for (int axis = 0; axis < ndim; axis++) {
            if ((size_t)PyArray_DIM(arrays[i], axis) != shape[axis]) {
                return dice_py_check(dice_fail(
                    DICE_E_INPUT, "%s: got %zd along axis %d, %zu classes and %zu features want %zu",
                    argument, (Py_ssize_t)PyArray_DIM(arrays[i], axis), axis, classes, features,
                    shape[axis]));
            }
        }
    }
    return i == PyTuple_GET_SIZE(tuple)
             ? 0
             : dice_py_check(dice_fail(DICE_E_INPUT, "%s: got %zd fitted arrays, want %zd", rule->name,
                                       PyTuple_GET_SIZE(tuple), i));
}

static PyObject *score(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name;
    PyObject *z_object, *h_object, *array_tuple, *number_tuple, *result = NULL;
    if (!PyArg_ParseTuple(args, "sOOO!O!", &name, &z_object, &h_object, &PyTuple_Type, &array_tuple,
                          &PyTuple_Type, &number_tuple)) {
        return NULL;
    }
    const dice_score_rule *rule = dice_score_find(name);
    if (rule == NULL) {
        dice_py_check(dice_fail(DICE_E_INPUT, "rule: there is no %s", name));
        return NULL;
    }
    PyArrayObject *z_array = NULL, *h_array = NULL, *arrays[MAX_ARRAYS] = {NULL};
    double numbers[MAX_ARRAYS] = {0};
    dice_rows z = {0}, h = {0};
    const int reads_z = rule->reads[0] == 'z', reads_h = rule->reads[reads_z] == 'h';
    if (read_numbers(rule, number_tuple, numbers) < 0
        || (reads_z && dice_py_rows(z_object, "z", &z_array, &z) < 0)
        || (reads_h && dice_py_rows(h_object, "h", &h_array, &h) < 0)) {
        goto done;
    }
    if (reads_z && reads_h && z.n != h.n) {
        dice_py_check(dice_fail(DICE_E_INPUT, "z: got %zu rows, h has %zu", z.n, h.n));
        goto done;
    }
    if (read_fitted(rule, array_tuple, z.width, h.width, arrays) < 0) {
        goto done;
    }
    const npy_intp shape[2] = {(npy_intp)(reads_z ? z.n : h.n), rule->outputs};
    result = PyArray_SimpleNew(rule->outputs == 1 ? 1 : 2, shape, NPY_FLOAT64);
    if (result != NULL) {
        const double *data[MAX_ARRAYS];
        for (int i = 0; i < MAX_ARRAYS; i++) {
            data[i] = arrays[i] == NULL ? NULL : PyArray_DATA(arrays[i]);
        }
        double *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_score_run(rule, reads_z ? &z : NULL, reads_h ? &h : NULL, data, numbers, to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
done:
    Py_XDECREF(z_array);
    Py_XDECREF(h_array);
    for (int i = 0; i < MAX_ARRAYS; i++) {
        Py_XDECREF(arrays[i]);
    }
    return result;
}

static PyObject *score_klm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *z_object, *typical_object, *result = NULL;
    PyArrayObject *z_array = NULL, *typical = NULL;
    dice_rows z;
    if (!PyArg_ParseTuple(args, "OO", &z_object, &typical_object)
        || dice_py_rows(z_object, "z", &z_array, &z) < 0
        || (typical = dice_py_array(typical_object, NPY_FLOAT64, 2, "log_typical")) == NULL) {
        goto done;
    }
    if ((size_t)PyArray_DIM(typical, 1) != z.width || PyArray_DIM(typical, 0) == 0) {
        dice_py_check(dice_fail(DICE_E_INPUT, "z: got %zu classes, was fitted with %zd", z.width,
                                (Py_ssize_t)PyArray_DIM(typical, 1)));
    } else if ((result = PyArray_SimpleNew(1, PyArray_DIMS(z_array), NPY_FLOAT64)) != NULL) {
        double *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_score_klm(&z, PyArray_DATA(typical), (size_t)PyArray_DIM(typical, 0), to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
done:
    Py_XDECREF(z_array);
    Py_XDECREF(typical);
    return result;
}

static PyObject *count_bins(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object, *counts_object;
    double low, high, *counts;
    PyArrayObject *array;
    dice_rows rows;
    if (!PyArg_ParseTuple(args, "OddO", &object, &low, &high, &counts_object)
        || dice_py_rows(object, "rows", &array, &rows) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    if (dice_py_in_place(counts_object, 2, (npy_intp)rows.n, -1, "counts", &counts) < 0) {
        goto done;
    }
    const size_t bins = (size_t)PyArray_DIM((PyArrayObject *)counts_object, 1);
    dice_status status;
    if (bins == 0 || !(low < high) || !isfinite(high - low)) {
        status = dice_fail(DICE_E_INPUT, "counts: got %zu bins from %g to %g, want some, and low < high",
                           bins, low, high);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = dice_bins_count(&rows, low, high, bins, counts);
        Py_END_ALLOW_THREADS
    }
    result = dice_py_result(status, Py_NewRef(Py_None));
done:
    Py_DECREF(array);
    return result;
}

static PyObject *activate(PyObject *Py_UNUSED(self), PyObject *args)
{
    static const char *const names[] = {"ash-p", "ash-b", "ash-s", "scale"};
    const char *name;
    PyObject *h_object;
    double percentile;
    if (!PyArg_ParseTuple(args, "sOd", &name, &h_object, &percentile)) {
        return NULL;
    }
    size_t rule = 0;
    while (rule < sizeof names / sizeof *names && strcmp(name, names[rule]) != 0) {
        rule++;
    }
    if (rule == sizeof names / sizeof *names) {
        dice_py_check(dice_fail(DICE_E_INPUT, "activation: got %s", name));
        return NULL;
    }
    if (isnan(percentile)) {
        dice_py_check(dice_fail(DICE_E_INPUT, "percentile: is NaN"));
        return NULL;
    }
    PyArrayObject *h = dice_py_array(h_object, NPY_FLOAT32, 2, "h");
    if (h == NULL) {
        return NULL;
    }
    const npy_intp n = PyArray_DIM(h, 0), features = PyArray_DIM(h, 1);
    PyObject *result = NULL;
    if (features == 0) {
        dice_py_check(dice_fail(DICE_E_INPUT, "h: has no columns"));
    } else if ((result = PyArray_SimpleNew(2, PyArray_DIMS(h), NPY_FLOAT32)) != NULL) {
        float *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_activation_run((dice_activation)rule, PyArray_DATA(h), (size_t)n, (size_t)features,
                                     percentile, to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
    Py_DECREF(h);
    return result;
}

static PyObject *cut(PyObject *Py_UNUSED(self), PyObject *args)
{
    static const char *const names[] = {"low", "high", "below"};
    PyObject *h_object, *objects[3], *result = NULL;
    PyArrayObject *h = NULL, *ends[3] = {NULL};
    if (!PyArg_ParseTuple(args, "OOOO", &h_object, &objects[0], &objects[1], &objects[2])
        || (h = dice_py_array(h_object, NPY_FLOAT32, 2, "h")) == NULL) {
        return NULL;
    }
    const npy_intp n = PyArray_DIM(h, 0), features = PyArray_DIM(h, 1);
    for (int i = 0; i < 3; i++) {
        if ((ends[i] = dice_py_array(objects[i], NPY_FLOAT32, 1, names[i])) == NULL) {
            goto done;
        }
        if (PyArray_DIM(ends[i], 0) != features) {
            dice_py_check(dice_fail(DICE_E_INPUT, "%s: got %zd values for %zd features", names[i],
                                    (Py_ssize_t)PyArray_DIM(ends[i], 0), (Py_ssize_t)features));
            goto done;
        }
    }
    if ((result = PyArray_SimpleNew(2, PyArray_DIMS(h), NPY_FLOAT32)) != NULL) {
        float *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_activation_cut(PyArray_DATA(h), (size_t)n, (size_t)features, PyArray_DATA(ends[0]),
                                     PyArray_DATA(ends[1]), PyArray_DATA(ends[2]), to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
done:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(ends[i]);
    }
    Py_DECREF(h);
    return result;
}

static PyMethodDef methods[] = {
    {"score", score, METH_VARARGS,
     "score($module, rule, z, h, arrays, numbers, /)\n--\n\n"
     "The scores by a rule: float64 (N,), or (N, K) for a rule that gives K numbers an image.\n\n"
     "rule: its name in csrc/ood/scores; z: logits (N, C) and h: features (N, D), float32 or float64, None\n"
     "for what the rule does not read; arrays: what was fitted, numbers: its parameters, both as the rule\n"
     "says. An image's bits depend neither on the others nor on the number of threads."},
    {"score_klm", score_klm, METH_VARARGS,
     "score_klm($module, z, log_typical, /)\n--\n\n"
     "-min over k of KL(softmax(z) || d_k): float64 (N,).\n\n"
     "z: logits (N, C), float32 or float64; log_typical: float64 (K, C), log d_k."},
    {"count_bins", count_bins, METH_VARARGS,
     "count_bins($module, rows, low, high, counts, /)\n--\n\n"
     "Adds to counts, in place, how many numbers of each row lie in each of B equal bins over [low, high);\n"
     "numbers outside are not counted.\n\n"
     "rows: (N, D), float32 or float64; counts: float64 (N, B), changed."},
    {"activate", activate, METH_VARARGS,
     "activate($module, rule, h, percentile, /)\n--\n\n"
     "The features h, float32 (N, D), reshaped by a rule: float32 (N, D).\n\n"
     "rule: \"ash-p\", \"ash-b\", \"ash-s\" or \"scale\"; percentile: of an image's own features."},
    {"cut", cut, METH_VARARGS,
     "cut($module, h, low, high, below, /)\n--\n\n"
     "The features h, float32 (N, D), with those above high made high, and those below low made below:\n"
     "float32 (N, D).\n\n"
     "low, high, below: float32 (D,), of each feature."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_scores(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
