/* The GPU seen from Python: whether there is one, and what DICE fits there. */
#include "python/binding.h"

#include "backend/plugin.h"

static PyObject *cuda_status(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    const char *reason, *file;
    dice_plugin_cuda(&reason, &file);
    return Py_BuildValue("(zs)", reason, file);
}

/* The back end of `device` where it has statistics of its own; NULL with an exception set. */
static const dice_backend *find(const char *device, dice_options *options)
{
    const dice_backend *backend;
    dice_status status = dice_backend_find(device, options, &backend);
    if (status == DICE_OK && (backend->moments == NULL || backend->rank == NULL)) {
        status = dice_fail(DICE_E_INPUT, "device %s: has no statistics of its own", device);
    }
    if (status != DICE_OK) {
        dice_py_raise(status);
        return NULL;
    }
    return backend;
}

static PyObject *device_moments(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object, *mean = NULL, *squares = NULL, *result = NULL;
    const char *device;
    if (!PyArg_ParseTuple(args, "Os", &object, &device)) {
        return NULL;
    }
    dice_options options = {0};
    const dice_backend *backend = find(device, &options);
    dice_py_cuda_array there = {0};
    if (backend == NULL || !dice_py_matrix(object, "h", backend, &options, &there)) {
        return NULL;
    }
    const npy_intp *dims = there.shape;
    if (dims[0] == 0 || dims[1] == 0) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: has no values"));
        goto done;
    }
    mean = PyArray_SimpleNew(1, &dims[1], NPY_FLOAT64);
    squares = PyArray_SimpleNew(1, &dims[1], NPY_FLOAT64);
    if (mean != NULL && squares != NULL) {
        dice_status status;
        int negative;
        Py_BEGIN_ALLOW_THREADS status = backend->moments(there.data, (size_t)dims[0], (size_t)dims[1],
                                                         &options, PyArray_DATA((PyArrayObject *)mean),
                                                         PyArray_DATA((PyArrayObject *)squares), &negative);
        Py_END_ALLOW_THREADS result = status == DICE_OK
                                        ? Py_BuildValue("(nOOO)", (Py_ssize_t)dims[0], mean, squares,
                                                        negative ? Py_True : Py_False)
                                        : dice_py_raise(status);
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(squares);
    dice_py_release(there.owner);
    return result;
}

static PyObject *device_rank(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *mean_object, *weight_object, *keep = NULL, *result = NULL;
    double p, threshold;
    int absolute;
    const char *device;
    if (!PyArg_ParseTuple(args, "OOdps", &mean_object, &weight_object, &p, &absolute, &device)) {
        return NULL;
    }
    dice_options options = {0};
    const dice_backend *backend = find(device, &options);
    if (backend == NULL) {
        return NULL;
    }
    dice_py_cuda_array there = {0};
    PyArrayObject *mean = dice_py_array(mean_object, NPY_FLOAT64, 1, "mean");
    if (mean == NULL || !dice_py_matrix(weight_object, "W", backend, &options, &there)) {
        goto done;
    }
    const npy_intp *shape = there.shape;
    if (shape[0] == 0 || shape[1] == 0 || PyArray_DIM(mean, 0) != shape[1]) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "mean: got %zd values, W (%zd, %zd) wants one a column",
                                PyArray_DIM(mean, 0), shape[0], shape[1]));
        goto done;
    }
    keep = PyArray_SimpleNew(2, shape, NPY_UINT8);
    if (keep != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = backend->rank(PyArray_DATA(mean), there.data, (size_t)shape[0],
                                                      (size_t)shape[1], absolute, p, &options, &threshold,
                                                      PyArray_DATA((PyArrayObject *)keep));
        Py_END_ALLOW_THREADS result = status == DICE_OK ? Py_BuildValue("(dO)", threshold, keep)
                                                        : dice_py_raise(status);
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(keep);
    dice_py_release(there.owner);
    return result;
}

static PyMethodDef methods[] = {
    {"cuda_status", cuda_status, METH_NOARGS,
     "cuda_status() -> (reason, file): why no GPU can be used (\"no plug-in\", \"no driver\", \"no device\", "
     "...) or\n"
     "None, and the file of the plug-in."},
    {"device_moments", device_moments, METH_VARARGS,
     "device_moments(h, device) -> (N, mean, squares, negative): of the columns of h, float32 (N, D), on the "
     "host or the\n"
     "device; sums of float64 on the device; whether a value is below 0."},
    {"device_rank", device_rank, METH_VARARGS,
     "device_rank(mean, W, p, absolute, device) -> (threshold, keep): what contribution_percentile and\n"
     "contribution_keep compute, bit by bit, on the device. W: on the host or the device. keep: uint8 (M, "
     "D)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_device(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
