/* The GPU seen from Python: whether there is one, arrays that live on it, and what DICE fits there. */
#include "python/binding.h"

#include <string.h>

#include "backend/plugin.h"

/* dict[key] as a borrowed reference, NULL where there is none or it is None. */
static PyObject *item(PyObject *dict, const char *key)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    return value == Py_None ? NULL : value;
}

/* Fills *array from the interface's dict. 0 where it is not as its definition says or not C-contiguous. */
static int read_interface(PyObject *dict, dice_py_cuda_array *array)
{
    PyObject *shape = item(dict, "shape"), *type = item(dict, "typestr"), *data = item(dict, "data");
    PyObject *strides = item(dict, "strides"), *stream = item(dict, "stream");
    const char *text = type != NULL && PyUnicode_Check(type) ? PyUnicode_AsUTF8(type) : NULL;
    if (text == NULL || shape == NULL || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > 4 || data == NULL
        || !PyTuple_Check(data) || PyTuple_GET_SIZE(data) != 2) {
        return 0;
    }
    array->typenum = strcmp(text, "|u1") == 0 ? NPY_UINT8 : strcmp(text, "<f4") == 0 ? NPY_FLOAT32 : NPY_NOTYPE;
    array->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data, 0));
    array->stream = stream == NULL ? 0 : (uintptr_t)PyLong_AsVoidPtr(stream);
    array->ndim = (int)PyTuple_GET_SIZE(shape);
    Py_ssize_t step = array->typenum == NPY_UINT8 ? 1 : 4;
    for (int axis = array->ndim - 1; axis >= 0; axis--) {
        array->shape[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis));
        if (strides != NULL && array->shape[axis] > 1
            && (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != array->ndim
                || PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, axis)) != step)) {
            return 0;
        }
        step *= array->shape[axis];
    }
    return !PyErr_Occurred();
}

int dice_py_cuda(PyObject *object, const char *argument, const dice_backend *backend, const dice_options *options,
                 dice_py_cuda_array *array)
{
    if (PyArray_Check(object)) {
        return 0;
    }
    PyObject *dict = PyObject_GetAttrString(object, "__cuda_array_interface__");
    if (dict == NULL) {
        PyErr_Clear();  /* not on a GPU */
        return 0;
    }
    dice_status status = DICE_OK;
    if (backend->wait == NULL) {
        status = dice_fail(DICE_E_INPUT, "%s: lives on a GPU; copy it to the host, or use device=\"cuda\"", argument);
    } else if (!PyDict_Check(dict) || !read_interface(dict, array)) {
        PyErr_Clear();
        status = dice_fail(DICE_E_INPUT, "%s: the array on the GPU must be C-contiguous and have at most 4 dimensions", argument);
    } else if (array->stream != 0) {
        Py_BEGIN_ALLOW_THREADS
        status = backend->wait(options, array->stream);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(dict);
    if (status != DICE_OK) {
        dice_py_raise(status);
        return -1;
    }
    return 1;
}

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
    const int on_gpu = backend == NULL ? -1 : dice_py_cuda(object, "h", backend, &options, &there);
    PyArrayObject *h = on_gpu == 0 ? dice_py_array(object, NPY_FLOAT32, 2, "h") : NULL;
    if (on_gpu < 0 || (on_gpu == 0 && h == NULL)) {
        return NULL;
    }
    const npy_intp *dims = on_gpu ? there.shape : PyArray_DIMS(h);
    if (on_gpu && (there.typenum != NPY_FLOAT32 || there.ndim != 2)) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: on the GPU, want float32 (N, D)"));
        goto done;
    }
    if (dims[0] == 0 || dims[1] == 0) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: has no values"));
        goto done;
    }
    mean = PyArray_SimpleNew(1, &dims[1], NPY_FLOAT64);
    squares = PyArray_SimpleNew(1, &dims[1], NPY_FLOAT64);
    if (mean != NULL && squares != NULL) {
        dice_status status;
        int negative;
        Py_BEGIN_ALLOW_THREADS
        status = backend->moments(on_gpu ? there.data : PyArray_DATA(h), (size_t)dims[0], (size_t)dims[1], &options,
                                  PyArray_DATA((PyArrayObject *)mean), PyArray_DATA((PyArrayObject *)squares), &negative);
        Py_END_ALLOW_THREADS
        result = status == DICE_OK ? Py_BuildValue("(nOOO)", (Py_ssize_t)dims[0], mean, squares, negative ? Py_True : Py_False)
                                   : dice_py_raise(status);
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(squares);
    Py_XDECREF(h);
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
    PyArrayObject *mean = dice_py_array(mean_object, NPY_FLOAT64, 1, "mean"), *weight = NULL;
    if (mean == NULL || (weight = dice_py_array(weight_object, NPY_FLOAT32, 2, "W")) == NULL) {
        goto done;
    }
    if (PyArray_SIZE(weight) == 0 || PyArray_DIM(mean, 0) != PyArray_DIM(weight, 1)) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "mean: got %zd values, W (%zd, %zd) wants one a column", PyArray_DIM(mean, 0),
                                PyArray_DIM(weight, 0), PyArray_DIM(weight, 1)));
        goto done;
    }
    keep = PyArray_SimpleNew(2, PyArray_DIMS(weight), NPY_UINT8);
    if (keep != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = backend->rank(PyArray_DATA(mean), PyArray_DATA(weight), (size_t)PyArray_DIM(weight, 0),
                               (size_t)PyArray_DIM(weight, 1), absolute, p, &options, &threshold,
                               PyArray_DATA((PyArrayObject *)keep));
        Py_END_ALLOW_THREADS
        result = status == DICE_OK ? Py_BuildValue("(dO)", threshold, keep) : dice_py_raise(status);
    }
done:
    Py_XDECREF(mean);
    Py_XDECREF(weight);
    Py_XDECREF(keep);
    return result;
}

static PyMethodDef methods[] = {
    {"cuda_status", cuda_status, METH_NOARGS,
     "cuda_status() -> (reason, file): why no GPU can be used (\"no plug-in\", \"no driver\", \"no device\", ...) or\n"
     "None, and the file of the plug-in."},
    {"device_moments", device_moments, METH_VARARGS,
     "device_moments(h, device) -> (N, mean, squares, negative): of the columns of h, float32 (N, D), on the host or the\n"
     "device; sums of float64 on the device; whether a value is below 0."},
    {"device_rank", device_rank, METH_VARARGS,
     "device_rank(mean, W, p, absolute, device) -> (threshold, keep): what contribution_percentile and\n"
     "contribution_keep compute, bit by bit, on the device. keep: uint8 (M, D)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_device(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
