/* Statistics of features and DICE's ranking. See ood/fit/moments.h and ood/fit/contribution.h. */
#include "python/binding.h"

#include "ood/fit/contribution.h"
#include "ood/fit/moments.h"

/* The state of a dice.stats.moments.Moments: its own writable float64 (4, D). */
static int moments_of(PyObject *state, unsigned long long count, const char *argument, dice_moments *out)
{
    if (!PyArray_Check(state) || PyArray_TYPE((PyArrayObject *)state) != NPY_FLOAT64
        || PyArray_NDIM((PyArrayObject *)state) != 2
        || PyArray_DIM((PyArrayObject *)state, 0) != DICE_MOMENTS_ROWS
        || !PyArray_ISCARRAY((PyArrayObject *)state)) {
        dice_py_raise(
            dice_fail(DICE_E_INPUT, "%s: want a writable contiguous float64 array (4, D)", argument));
        return 0;
    }
    out->features = (size_t)PyArray_DIM((PyArrayObject *)state, 1);
    out->count = count;
    out->state = PyArray_DATA((PyArrayObject *)state);
    return 1;
}

static PyObject *moments_add(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *x_object;
    unsigned long long count;
    dice_moments moments;
    if (!PyArg_ParseTuple(args, "OKO", &state, &count, &x_object)
        || !moments_of(state, count, "state", &moments)) {
        return NULL;
    }
    PyArrayObject *x = dice_py_array(x_object, NPY_FLOAT64, 2, "h");
    if (x == NULL) {
        return NULL;
    }
    dice_status status;
    int negative = 0;
    if ((size_t)PyArray_DIM(x, 1) != moments.features) {
        status = dice_fail(DICE_E_INPUT, "h: got %zd features, want %zu", (Py_ssize_t)PyArray_DIM(x, 1),
                           moments.features);
    } else {
        Py_BEGIN_ALLOW_THREADS status = dice_moments_add(&moments, PyArray_DATA(x), (size_t)PyArray_DIM(x, 0),
                                                         &negative);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(x);
    return status == DICE_OK ? PyBool_FromLong(negative) : dice_py_raise(status);
}

static PyObject *moments_merge(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *into_state, *other_state;
    unsigned long long into_count, other_count;
    dice_moments into, other;
    if (!PyArg_ParseTuple(args, "OKOK", &into_state, &into_count, &other_state, &other_count)
        || !moments_of(into_state, into_count, "state", &into)
        || !moments_of(other_state, other_count, "other", &other)) {
        return NULL;
    }
    if (into.features != other.features) {
        return dice_py_raise(
            dice_fail(DICE_E_INPUT, "other: got %zu features, want %zu", other.features, into.features));
    }
    dice_moments_merge(&into, &other);
    Py_RETURN_NONE;
}

/* Reads mean (D) and W (M, D); on success the caller releases both arrays. */
static int contribution_of(PyObject *mean_object, PyObject *weight_object, int absolute, PyArrayObject **mean,
                           PyArrayObject **weight, dice_contribution *out)
{
    *weight = NULL;
    *mean = dice_py_array(mean_object, NPY_FLOAT64, 1, "mean");
    if (*mean == NULL) {
        return 0;
    }
    *weight = dice_py_array(weight_object, NPY_FLOAT32, 2, "W");
    if (*weight == NULL) {
        Py_CLEAR(*mean);
        return 0;
    }
    const npy_intp *shape = PyArray_DIMS(*weight);
    if (PyArray_DIM(*mean, 0) != shape[1] || shape[0] == 0 || shape[1] == 0) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "mean: got %zd features, W (%zd, %zd) wants %zd and none empty",
                                (Py_ssize_t)PyArray_DIM(*mean, 0), (Py_ssize_t)shape[0], (Py_ssize_t)shape[1],
                                (Py_ssize_t)shape[1]));
        Py_CLEAR(*mean);
        Py_CLEAR(*weight);
        return 0;
    }
    *out = (dice_contribution){.mean = PyArray_DATA(*mean),
                               .weight = PyArray_DATA(*weight),
                               .classes = (size_t)shape[0],
                               .features = (size_t)shape[1],
                               .absolute = absolute};
    return 1;
}

static PyObject *contribution_percentile(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object;
    double p, threshold = 0;
    int absolute;
    PyArrayObject *mean, *weight;
    dice_contribution v;
    if (!PyArg_ParseTuple(args, "OOdp", &mean_object, &weight_object, &p, &absolute)
        || !contribution_of(mean_object, weight_object, absolute, &mean, &weight, &v)) {
        return NULL;
    }
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = dice_contribution_percentile(&v, p, &threshold);
    Py_END_ALLOW_THREADS Py_DECREF(mean);
    Py_DECREF(weight);
    return status == DICE_OK ? PyFloat_FromDouble(threshold) : dice_py_raise(status);
}

static PyObject *contribution_keep(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object;
    double threshold;
    int absolute;
    PyArrayObject *mean, *weight;
    dice_contribution v;
    if (!PyArg_ParseTuple(args, "OOdp", &mean_object, &weight_object, &threshold, &absolute)
        || !contribution_of(mean_object, weight_object, absolute, &mean, &weight, &v)) {
        return NULL;
    }
    PyObject *keep = PyArray_SimpleNew(2, PyArray_DIMS(weight), NPY_UINT8);
    if (keep != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_contribution_keep(&v, threshold,
                                                               PyArray_DATA((PyArrayObject *)keep));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(keep);
            dice_py_raise(status);
        }
    }
    Py_DECREF(mean);
    Py_DECREF(weight);
    return keep;
}

static PyMethodDef methods[] = {
    {"moments_add", moments_add, METH_VARARGS,
     "moments_add(state, count, h) -> bool: adds h (N, D) to the state of `count` images; True if some h < "
     "0."},
    {"moments_merge", moments_merge, METH_VARARGS,
     "moments_merge(state, count, other, other_count): adds the other state to the first."},
    {"contribution_percentile", contribution_percentile, METH_VARARGS,
     "contribution_percentile(mean, W, p, absolute) -> float: numpy.percentile(mean * W, p), to the bit."},
    {"contribution_keep", contribution_keep, METH_VARARGS,
     "contribution_keep(mean, W, threshold, absolute) -> uint8 (M, D): mean * W > threshold."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_ood(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
