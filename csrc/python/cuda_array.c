/* Arrays on a GPU, as DLPack or __cuda_array_interface__ describes them. See binding.h. */
#include "python/binding.h"

#include <string.h>

/* The beginning of DLPack's DLManagedTensor (dmlc/dlpack, ABI before 1.0, which every producer still speaks).
 */
typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements, NULL = C-contiguous */
    uint64_t byte_offset;
} dl_tensor;

enum { DL_CUDA = 2, DL_CUDA_MANAGED = 13, DL_UINT = 1, DL_FLOAT = 2 };
enum { DEFAULT_STREAM = 1 }; /* by its number in DLPack, the interface and the CUDA runtime */
enum { MOST_DIMENSIONS = 4 };

/* Whether object.__dlpack_device__() is a GPU's; an exception is none. */
static int offers_dlpack(PyObject *object)
{
    PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    int type = 0, id;
    const int read = device != NULL && PyTuple_Check(device) && PyArg_ParseTuple(device, "ii", &type, &id);
    Py_XDECREF(device);
    PyErr_Clear();
    return read && (type == DL_CUDA || type == DL_CUDA_MANAGED);
}

/* Fills *array from object.__dlpack__(). 0 where it is not C-contiguous or not given, which an exception
 * explains. */
static int read_dlpack(PyObject *object, dice_py_cuda_array *array)
{
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__"), *nothing = PyTuple_New(0);
    PyObject *stream = Py_BuildValue("{s:i}", "stream",
                                     DEFAULT_STREAM); /* it is to wait for what makes the array */
    PyObject *capsule = method == NULL || nothing == NULL || stream == NULL
                          ? NULL
                          : PyObject_Call(method, nothing, stream);
    Py_XDECREF(method);
    Py_XDECREF(nothing);
    Py_XDECREF(stream);
    const dl_tensor *tensor = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, "dltensor");
    int good = tensor != NULL && tensor->ndim >= 0 && tensor->ndim <= MOST_DIMENSIONS;
    int64_t step = 1;
    for (int axis = good ? tensor->ndim - 1 : -1; axis >= 0; axis--) {
        array->shape[axis] = (npy_intp)tensor->shape[axis];
        good &= tensor->shape[axis] >= 0
             && (tensor->strides == NULL || tensor->shape[axis] <= 1 || tensor->strides[axis] == step);
        step *= tensor->shape[axis];
    }
    if (!good) {
        dice_py_release(capsule);
        return 0;
    }
    const int bytes = tensor->code == DL_UINT && tensor->bits == 8,
              floats = tensor->code == DL_FLOAT && tensor->bits == 32;
    array->typenum = tensor->lanes != 1 ? NPY_NOTYPE : bytes ? NPY_UINT8 : floats ? NPY_FLOAT32 : NPY_NOTYPE;
    array->data = (char *)tensor->data + tensor->byte_offset;
    array->ndim = tensor->ndim;
    array->stream = DEFAULT_STREAM;
    array->owner = capsule; /* unused: its destructor gives the array back */
    return 1;
}

/* dict[key] as a borrowed reference, NULL where there is none or it is None. */
static PyObject *item(PyObject *dict, const char *key)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    return value == Py_None ? NULL : value;
}

/* Fills *array from the interface's dict. 0 where it is not as its definition says or not C-contiguous. */
static int read_interface(PyObject *dict, dice_py_cuda_array *array)
{
    if (!PyDict_Check(dict)) {
        return 0;
    }
    PyObject *shape = item(dict, "shape"), *type = item(dict, "typestr"), *data = item(dict, "data");
    PyObject *strides = item(dict, "strides"), *stream = item(dict, "stream");
    const char *text = type != NULL && PyUnicode_Check(type) ? PyUnicode_AsUTF8(type) : NULL;
    if (text == NULL || shape == NULL || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > MOST_DIMENSIONS
        || data == NULL || !PyTuple_Check(data) || PyTuple_GET_SIZE(data) != 2
        || item(dict, "mask") != NULL) {
        return 0;
    }
    array->typenum = strcmp(text, "|u1") == 0 ? NPY_UINT8
                   : strcmp(text, "<f4") == 0 ? NPY_FLOAT32
                                              : NPY_NOTYPE;
    array->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data, 0));
    array->stream = stream == NULL ? 0 : (uintptr_t)PyLong_AsVoidPtr(stream);
    array->ndim = (int)PyTuple_GET_SIZE(shape);
    Py_ssize_t step = array->typenum == NPY_UINT8 ? 1 : 4;
    for (int axis = array->ndim - 1; axis >= 0; axis--) {
        array->shape[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis));
        if (array->shape[axis] < 0
            || (strides != NULL && array->shape[axis] > 1
                && (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != array->ndim
                    || PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, axis)) != step))) {
            return 0;
        }
        step *= array->shape[axis];
    }
    return !PyErr_Occurred();
}

/* A foreign capsule's destructor may run Python code, which an exception of ours must not meet. */
void dice_py_release(PyObject *owner)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(owner);
    PyErr_Restore(type, value, trace);
}

/* A misaligned float would be the end of every kernel of the process. */
static int is_aligned(const dice_py_cuda_array *array)
{
    return array->typenum != NPY_FLOAT32 || (uintptr_t)array->data % sizeof(float) == 0;
}

/* With what the array's owner says (torch: that it needs a gradient, or lives on another device than the
 * current one). */
static dice_status refuse(const char *argument)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *text = value == NULL ? NULL : PyObject_Str(value);
    const char *why = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    const dice_status status =
        why != NULL ? dice_fail(DICE_E_INPUT, "%s: the array on the GPU cannot be had: %s", argument, why)
                    : dice_fail(DICE_E_INPUT,
                                "%s: the array on the GPU must be C-contiguous and aligned, without a mask, "
                                "and have at most 4 "
                                "dimensions",
                                argument);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return status;
}

/* DLPack first: it alone says when the array is ready, whatever stream makes it. */
int dice_py_cuda(PyObject *object, const char *argument, const dice_backend *backend,
                 const dice_options *options, dice_py_cuda_array *array)
{
    if (PyArray_Check(object)) {
        return 0;
    }
    const int by_dlpack = offers_dlpack(object);
    PyObject *dict = by_dlpack ? NULL : PyObject_GetAttrString(object, "__cuda_array_interface__");
    if (dict == NULL && !by_dlpack) {
        PyErr_Clear(); /* not on a GPU */
        return 0;
    }
    dice_status status = DICE_OK;
    if (backend->arrived == NULL) {
        status = dice_fail(DICE_E_INPUT, "%s: lives on a GPU; copy it to the host, or use device=\"cuda\"",
                           argument);
    } else if (!(by_dlpack ? read_dlpack(object, array) : read_interface(dict, array))
               || !is_aligned(array)) {
        status = refuse(argument);
    } else {
        size_t count = array->typenum == NPY_FLOAT32;
        for (int axis = 0; axis < array->ndim; axis++) {
            count *= (size_t)array->shape[axis];
        }
        int finite;
        Py_BEGIN_ALLOW_THREADS status = backend->arrived(options, array->stream, array->data, count, &finite);
        Py_END_ALLOW_THREADS if (status == DICE_OK && !finite)
        {
            status = dice_fail(DICE_E_INPUT, "%s: holds NaN or infinity", argument);
        }
    }
    Py_XDECREF(dict);
    if (status != DICE_OK) {
        dice_py_release(array->owner);
        array->owner = NULL;
        PyErr_Clear();
        dice_py_raise(status);
        return -1;
    }
    return 1;
}

int dice_py_matrix(PyObject *object, const char *argument, const dice_backend *backend,
                   const dice_options *options, dice_py_cuda_array *array)
{
    const int on_gpu = dice_py_cuda(object, argument, backend, options, array);
    if (on_gpu == 1 && (array->typenum != NPY_FLOAT32 || array->ndim != 2)) {
        dice_py_release(array->owner);
        array->owner = NULL;
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: on the GPU, want float32 with 2 dimensions", argument));
        return 0;
    }
    PyArrayObject *host = on_gpu == 0 ? dice_py_array(object, NPY_FLOAT32, 2, argument) : NULL;
    if (host != NULL) {
        *array = (dice_py_cuda_array){.data = PyArray_DATA(host),
                                      .typenum = NPY_FLOAT32,
                                      .ndim = 2,
                                      .shape = {PyArray_DIM(host, 0), PyArray_DIM(host, 1)},
                                      .owner = (PyObject *)host};
    }
    return on_gpu == 1 || host != NULL;
}
