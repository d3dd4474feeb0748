/* Where work runs: the back end of a device, whether there is a GPU, and the statistics that one computes. */
#include "python/binding.h"

#include <string.h>

#include "backend/plugin.h"

static const char *const precisions[] = {"float32", "bf16x3", "bf16"}; /* by dice_precision */

const char *dice_py_precision_name(dice_precision precision)
{
    return precisions[precision];
}

int dice_py_find_place(const char *device, const char *isa, const char *precision, dice_py_place *place)
{
    *place = (dice_py_place){0};
    dice_status status = dice_isa_select(isa, &place->options.isa);
    int found = DICE_FLOAT32;
    while (found <= DICE_BF16 && strcmp(precision, precisions[found]) != 0) {
        found++;
    }
    if (status == DICE_OK && found > DICE_BF16) {
        status = dice_fail(DICE_E_INPUT, "precision %s: not one of float32, bf16x3, bf16", precision);
    }
    if (status == DICE_OK) {
        place->options.precision = (dice_precision)found;
        status = dice_backend_find(device, &place->options, &place->backend);
    }
    return dice_py_check(status);
}

static PyObject *cuda_status(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    const char *reason, *file;
    dice_plugin_cuda(&reason, &file);
    return Py_BuildValue("(zs)", reason, file);
}

typedef enum statistic { MOMENTS, RANK } statistic;

/* *place = the back end of `device`, *offered = whether it computes the statistic. */
static int find_statistic(const char *device, statistic what, dice_py_place *place, int *offered)
{
    if (dice_py_find_place(device, NULL, "float32", place) < 0) {
        return -1;
    }
    *offered = what == MOMENTS ? place->backend->moments != NULL : place->backend->rank != NULL;
    return 0;
}

/* *place = the back end of `device`; InputError where it does not compute the statistic. */
static int need_statistic(const char *device, statistic what, dice_py_place *place)
{
    int offered;
    if (find_statistic(device, what, place, &offered) < 0) {
        return -1;
    }
    return offered
             ? 0
             : dice_py_check(dice_fail(DICE_E_INPUT, "device %s: has no statistics of its own", device));
}

static PyObject *device_offers(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *device, *name;
    dice_py_place place;
    int offered;
    if (!PyArg_ParseTuple(args, "ss", &device, &name)) {
        return NULL;
    }
    const int is_rank = strcmp(name, "rank") == 0;
    if (!is_rank && strcmp(name, "moments") != 0) {
        dice_py_check(dice_fail(DICE_E_INPUT, "statistic %s: not one of moments, rank", name));
        return NULL;
    }
    return find_statistic(device, is_rank ? RANK : MOMENTS, &place, &offered) < 0 ? NULL
                                                                                  : PyBool_FromLong(offered);
}

static PyObject *device_moments(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object, *mean = NULL, *squares = NULL, *result = NULL;
    const char *device;
    dice_py_place place;
    dice_py_view h = {0};
    if (!PyArg_ParseTuple(args, "Os", &object, &device) || need_statistic(device, MOMENTS, &place) < 0
        || dice_py_floats(object, 2, "h", &place, &h) < 0) {
        return NULL;
    }
    const npy_intp n = h.shape[0], features = h.shape[1];
    if (n == 0 || features == 0) {
        dice_py_check(dice_fail(DICE_E_INPUT, "h: has no values"));
        goto done;
    }
    mean = PyArray_SimpleNew(1, &features, NPY_FLOAT64);
    squares = PyArray_SimpleNew(1, &features, NPY_FLOAT64);
    if (mean != NULL && squares != NULL) {
        double *to_mean = dice_py_data(mean), *to_squares = dice_py_data(squares);
        dice_status status;
        int negative;
        Py_BEGIN_ALLOW_THREADS
        status = place.backend->moments(h.data, (size_t)n, (size_t)features, &place.options, to_mean,
                                        to_squares, &negative);
        Py_END_ALLOW_THREADS
        if (dice_py_check(status) == 0) {
            result = Py_BuildValue("(nOOO)", (Py_ssize_t)n, mean, squares, negative ? Py_True : Py_False);
        }
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(squares);
    dice_py_release(h.owner);
    return result;
}

static PyObject *device_rank(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object, *keep = NULL, *result = NULL;
    double p, threshold;
    int absolute;
    const char *device;
    PyArrayObject *mean = NULL;
    dice_py_place place;
    dice_py_view weight = {0};
    if (!PyArg_ParseTuple(args, "OOdps", &mean_object, &weight_object, &p, &absolute, &device)
        || need_statistic(device, RANK, &place) < 0
        || (mean = dice_py_array(mean_object, NPY_FLOAT64, 1, "mean")) == NULL
        || dice_py_floats(weight_object, 2, "W", &place, &weight) < 0) {
        goto done;
    }
    const npy_intp *shape = weight.shape;
    if (shape[0] == 0 || shape[1] == 0 || PyArray_DIM(mean, 0) != shape[1]) {
        dice_py_check(dice_fail(DICE_E_INPUT, "mean: got %zd values, W (%zd, %zd) wants one a column",
                                (Py_ssize_t)PyArray_DIM(mean, 0), (Py_ssize_t)shape[0],
                                (Py_ssize_t)shape[1]));
        goto done;
    }
    if (!(p >= 0 && p <= 100)) {
        dice_py_check(dice_fail(DICE_E_INPUT, "p: got %g, want a percentage from 0 to 100", p));
        goto done;
    }
    keep = PyArray_SimpleNew(2, shape, NPY_UINT8);
    if (keep != NULL) {
        uint8_t *to_keep = dice_py_data(keep);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = place.backend->rank(PyArray_DATA(mean), weight.data, (size_t)shape[0], (size_t)shape[1],
                                     absolute, p, &place.options, &threshold, to_keep);
        Py_END_ALLOW_THREADS
        if (dice_py_check(status) == 0) {
            result = Py_BuildValue("(dO)", threshold, keep);
        }
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(keep);
    dice_py_release(weight.owner);
    return result;
}

static PyMethodDef methods[] = {
    {"cuda_status", cuda_status, METH_NOARGS,
     "cuda_status($module, /)\n--\n\n"
     "Whether a GPU can be used: (reason, file).\n\n"
     "reason: None where one can, else \"no plug-in\", \"no driver\", \"no device\" or the like;\n"
     "file: where the plug-in lies, or should."},
    {"device_offers", device_offers, METH_VARARGS,
     "device_offers($module, device, statistic, /)\n--\n\n"
     "Whether the device computes the statistic itself: \"moments\" (device_moments) or \"rank\"\n"
     "(device_rank). DeviceError where it cannot be used."},
    {"device_moments", device_moments, METH_VARARGS,
     "device_moments($module, h, device, /)\n--\n\n"
     "Mean and spread of each feature, computed on a device: (N, mean, squares, negative).\n\n"
     "h: float32 (N, D), on the host or on the device. mean: float64 (D,); squares: float64 (D,), the\n"
     "sum of the squared differences from the mean; negative: whether a value of h is below 0."},
    {"device_rank", device_rank, METH_VARARGS,
     "device_rank($module, mean, W, p, absolute, device, /)\n--\n\n"
     "contribution_percentile and contribution_keep in one, on a device and with the same bits:\n"
     "(threshold, keep).\n\n"
     "mean: float64 (D,), on the host; W: float32 (M, D), on the host or on the device; keep: uint8 (M, D)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_device(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
