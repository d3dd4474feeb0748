/* What the fits learn from training features: moments, class moments, DICE's ranking. See ood/fit. */
#include "python/binding.h"

#include "ood/fit/classes.h"
#include "ood/fit/contribution.h"
#include "ood/fit/moments.h"

/* *out = the state of a dice.stats.moments.Moments: its float64 (4, D), which the core changes in place, and
 * the number of images it has seen. */
static int read_moments(PyObject *state, uint64_t count, const char *argument, dice_moments *out)
{
    if (dice_py_in_place(state, 2, DICE_MOMENTS_ROWS, -1, argument, &out->state) < 0) {
        return -1;
    }
    out->features = (size_t)PyArray_DIM((PyArrayObject *)state, 1);
    out->count = count;
    return 0;
}

static PyObject *moments_add(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *h_object;
    uint64_t count;
    dice_moments moments;
    if (!PyArg_ParseTuple(args, "OO&O", &state, dice_py_to_uint64, &count, &h_object)
        || read_moments(state, count, "state", &moments) < 0) {
        return NULL;
    }
    PyArrayObject *h = dice_py_array(h_object, NPY_FLOAT64, 2, "h");
    if (h == NULL) {
        return NULL;
    }
    dice_status status;
    int negative = 0;
    if ((size_t)PyArray_DIM(h, 1) != moments.features) {
        status = dice_fail(DICE_E_INPUT, "h: got %zd features, want %zu", (Py_ssize_t)PyArray_DIM(h, 1),
                           moments.features);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = dice_moments_add(&moments, PyArray_DATA(h), (size_t)PyArray_DIM(h, 0), &negative);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(h);
    return dice_py_result(status, PyBool_FromLong(negative));
}

static PyObject *moments_merge(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *into_state, *other_state;
    uint64_t into_count, other_count;
    dice_moments into, other;
    if (!PyArg_ParseTuple(args, "OO&OO&", &into_state, dice_py_to_uint64, &into_count, &other_state,
                          dice_py_to_uint64, &other_count)
        || read_moments(into_state, into_count, "state", &into) < 0
        || read_moments(other_state, other_count, "other", &other) < 0) {
        return NULL;
    }
    if (into.features != other.features) {
        dice_py_check(
            dice_fail(DICE_E_INPUT, "other: got %zu features, want %zu", other.features, into.features));
        return NULL;
    }
    dice_moments_merge(&into, &other);
    Py_RETURN_NONE;
}

int dice_py_classes(PyObject *state, const char *argument, dice_classes *out)
{
    if (!PyTuple_Check(state) || PyTuple_GET_SIZE(state) != 3) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "%s: want a tuple (count, mean, scatter or None)", argument));
    }
    PyObject *mean = PyTuple_GET_ITEM(state, 1), *scatter = PyTuple_GET_ITEM(state, 2);
    *out = (dice_classes){0};
    if (dice_py_in_place(mean, 2, -1, -1, argument, &out->mean) < 0) {
        return -1;
    }
    const npy_intp classes = PyArray_DIM((PyArrayObject *)mean, 0),
                   features = PyArray_DIM((PyArrayObject *)mean, 1);
    out->classes = (size_t)classes;
    out->features = (size_t)features;
    if (dice_py_in_place(PyTuple_GET_ITEM(state, 0), 1, classes, -1, argument, &out->count) < 0) {
        return -1;
    }
    return scatter == Py_None ? 0 : dice_py_in_place(scatter, 2, features, features, argument, &out->scatter);
}

static dice_status check_labels(const int64_t *labels, npy_intp n, size_t classes)
{
    for (npy_intp i = 0; i < n; i++) {
        if (labels[i] >= (int64_t)classes) {
            return dice_fail(DICE_E_INPUT, "y: got class %lld of %zu", (long long)labels[i], classes);
        }
    }
    return DICE_OK;
}

static PyObject *classes_add(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *h_object, *label_object, *result = NULL;
    PyArrayObject *h = NULL, *label = NULL;
    dice_classes classes;
    if (!PyArg_ParseTuple(args, "OOO", &state, &h_object, &label_object)
        || dice_py_classes(state, "state", &classes) < 0
        || (h = dice_py_array(h_object, NPY_FLOAT64, 2, "h")) == NULL
        || (label = dice_py_array(label_object, NPY_INT64, 1, "y")) == NULL) {
        goto done;
    }
    const npy_intp n = PyArray_DIM(h, 0);
    const int64_t *labels = PyArray_DATA(label);
    dice_status status;
    if (PyArray_DIM(label, 0) != n || (size_t)PyArray_DIM(h, 1) != classes.features) {
        status = dice_fail(DICE_E_INPUT, "h: got shape (%zd, %zd) for %zd labels and %zu features",
                           (Py_ssize_t)n, (Py_ssize_t)PyArray_DIM(h, 1), (Py_ssize_t)PyArray_DIM(label, 0),
                           classes.features);
    } else {
        status = check_labels(labels, n, classes.classes);
    }
    if (status == DICE_OK) {
        Py_BEGIN_ALLOW_THREADS
        status = dice_classes_add(&classes, PyArray_DATA(h), labels, (size_t)n);
        Py_END_ALLOW_THREADS
    }
    result = dice_py_result(status, Py_NewRef(Py_None));
done:
    Py_XDECREF(h);
    Py_XDECREF(label);
    return result;
}

static PyObject *classes_merge(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *other_state;
    dice_classes classes, other;
    if (!PyArg_ParseTuple(args, "OO", &state, &other_state) || dice_py_classes(state, "state", &classes) < 0
        || dice_py_classes(other_state, "other", &other) < 0) {
        return NULL;
    }
    dice_status status;
    if (classes.classes != other.classes || classes.features != other.features
        || (classes.scatter == NULL) != (other.scatter == NULL)) {
        status = dice_fail(DICE_E_INPUT, "other: got %zu classes of %zu features, want %zu of %zu",
                           other.classes, other.features, classes.classes, classes.features);
    } else {
        Py_BEGIN_ALLOW_THREADS
        status = dice_classes_merge(&classes, &other);
        Py_END_ALLOW_THREADS
    }
    return dice_py_result(status, Py_NewRef(Py_None));
}

static PyObject *classes_scatter(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *scatter = NULL, *mean = NULL, *result = NULL;
    int total;
    dice_classes classes;
    if (!PyArg_ParseTuple(args, "Op", &state, &total) || dice_py_classes(state, "state", &classes) < 0) {
        return NULL;
    }
    if (classes.scatter == NULL) {
        dice_py_check(dice_fail(DICE_E_INPUT, "state: keeps no scatter"));
        return NULL;
    }
    const npy_intp shape[2] = {(npy_intp)classes.features, (npy_intp)classes.features};
    scatter = PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    mean = PyArray_SimpleNew(1, shape, NPY_FLOAT64);
    if (scatter != NULL && mean != NULL) {
        double *to_scatter = dice_py_data(scatter), *to_mean = dice_py_data(mean);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_classes_scatter(&classes, total, to_scatter, to_mean);
        Py_END_ALLOW_THREADS
        if (dice_py_check(status) == 0) {
            result = PyTuple_Pack(2, scatter, mean);
        }
    }
    Py_XDECREF(scatter);
    Py_XDECREF(mean);
    return result;
}

/* Reads mean (D) and W (M, D); on success the caller releases both arrays. */
static int read_contribution(PyObject *mean_object, PyObject *weight_object, int absolute,
                             PyArrayObject **mean, PyArrayObject **weight, dice_contribution *out)
{
    *mean = dice_py_array(mean_object, NPY_FLOAT64, 1, "mean");
    *weight = *mean == NULL ? NULL : dice_py_array(weight_object, NPY_FLOAT32, 2, "W");
    if (*weight == NULL) {
        Py_CLEAR(*mean);
        return -1;
    }
    const Py_ssize_t means = PyArray_DIM(*mean, 0), classes = PyArray_DIM(*weight, 0),
                     features = PyArray_DIM(*weight, 1);
    if (means != features || classes == 0 || features == 0) {
        Py_CLEAR(*mean);
        Py_CLEAR(*weight);
        return dice_py_check(dice_fail(DICE_E_INPUT,
                                       "mean: got %zd features, W (%zd, %zd) wants %zd and none empty", means,
                                       classes, features, features));
    }
    *out = (dice_contribution){.mean = PyArray_DATA(*mean),
                               .weight = PyArray_DATA(*weight),
                               .classes = (size_t)classes,
                               .features = (size_t)features,
                               .absolute = absolute};
    return 0;
}

static PyObject *contribution_percentile(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object;
    double p, threshold = 0;
    int absolute;
    PyArrayObject *mean, *weight;
    dice_contribution v;
    if (!PyArg_ParseTuple(args, "OOdp", &mean_object, &weight_object, &p, &absolute)
        || read_contribution(mean_object, weight_object, absolute, &mean, &weight, &v) < 0) {
        return NULL;
    }
    dice_status status;
    Py_BEGIN_ALLOW_THREADS
    status = dice_contribution_percentile(&v, p, &threshold);
    Py_END_ALLOW_THREADS
    Py_DECREF(mean);
    Py_DECREF(weight);
    return dice_py_result(status, PyFloat_FromDouble(threshold));
}

static PyObject *contribution_keep(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object;
    double threshold;
    int absolute;
    PyArrayObject *mean, *weight;
    dice_contribution v;
    if (!PyArg_ParseTuple(args, "OOdp", &mean_object, &weight_object, &threshold, &absolute)
        || read_contribution(mean_object, weight_object, absolute, &mean, &weight, &v) < 0) {
        return NULL;
    }
    PyObject *keep = PyArray_SimpleNew(2, PyArray_DIMS(weight), NPY_UINT8);
    if (keep != NULL) {
        uint8_t *to = dice_py_data(keep);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_contribution_keep(&v, threshold, to);
        Py_END_ALLOW_THREADS
        keep = dice_py_result(status, keep);
    }
    Py_DECREF(mean);
    Py_DECREF(weight);
    return keep;
}

static PyMethodDef methods[] = {
    {"moments_add", moments_add, METH_VARARGS,
     "moments_add($module, state, count, h, /)\n--\n\n"
     "Adds features to running moments, in place; returns whether a value of h is below 0.\n\n"
     "state: float64 (4, D), changed; zeros where nothing was added. count: how many images were added\n"
     "before. h: (N, D), computed with as float64."},
    {"moments_merge", moments_merge, METH_VARARGS,
     "moments_merge($module, state, count, other, other_count, /)\n--\n\n"
     "Adds to the moments `state` of `count` images, in place, those of other images.\n\n"
     "state, other: float64 (4, D)."},
    {"classes_add", classes_add, METH_VARARGS,
     "classes_add($module, state, h, label, /)\n--\n\n"
     "Adds features to the moments of classes, in place.\n\n"
     "state: (count, mean, scatter), float64 (K,), (K, D) and (D, D), changed; scatter may be None.\n"
     "h: (N, D), computed with as float64; label: int64 (N,), each row's class; a row with a label below 0\n"
     "is left out."},
    {"classes_merge", classes_merge, METH_VARARGS,
     "classes_merge($module, state, other, /)\n--\n\n"
     "Adds to the moments of classes `state`, in place, those of other images. Both as classes_add takes\n"
     "them, with a scatter or both without."},
    {"classes_scatter", classes_scatter, METH_VARARGS,
     "classes_scatter($module, state, total, /)\n--\n\n"
     "The scatter of all images about the means of their classes or, where `total` is true, about the mean\n"
     "of all: (scatter, mean), float64 (D, D) and (D,), with the mean of all."},
    {"contribution_percentile", contribution_percentile, METH_VARARGS,
     "contribution_percentile($module, mean, W, p, absolute, /)\n--\n\n"
     "The p-th percentile of the contributions V = mean * W, or of |V| where `absolute` is true: the\n"
     "bits of numpy.percentile.\n\n"
     "mean: float64 (D,); W: float32 (M, D); p: from 0 to 100."},
    {"contribution_keep", contribution_keep, METH_VARARGS,
     "contribution_keep($module, mean, W, threshold, absolute, /)\n--\n\n"
     "1 where the contribution V = mean * W, or |V| where `absolute` is true, is above the threshold,\n"
     "else 0: uint8 (M, D).\n\n"
     "mean: float64 (D,); W: float32 (M, D)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_fit(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
