/* Arrays on a GPU, as DLPack or __cuda_array_interface__ describes them. See binding.h. */
#include "python/binding.h"

#include <string.h>

/* The beginning of DLPack's DLManagedTensor (dmlc/dlpack): the layout before version 1.0, which every
 * producer still offers. */
typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements; NULL = C-contiguous */
    uint64_t byte_offset;
} dl_tensor;

enum { DL_CUDA = 2, DL_CUDA_MANAGED = 13, DL_UINT = 1, DL_FLOAT = 2 };
enum { DEFAULT_STREAM = 1 }; /* its number in DLPack, in the interface and in the CUDA runtime */
enum { MOST_DIMENSIONS = 4 };
/* More than any memory holds, and so few that a product of sizes stays in 64 bits. */
static const int64_t MOST_VALUES = (int64_t)1 << 48;

/* Whether object.__dlpack_device__() names a GPU; an object that raises an exception is not on one. */
static int offers_dlpack(PyObject *object)
{
    PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    int type = 0, id;
    const int read = device != NULL && PyTuple_Check(device) && PyArg_ParseTuple(device, "ii", &type, &id);
    Py_XDECREF(device);
    PyErr_Clear();
    return read && (type == DL_CUDA || type == DL_CUDA_MANAGED);
}

/* For each axis from the last to the first: whether its stride, where one is given, is that of a C-contiguous
 * array. *step is that stride, one element for the last axis; it becomes the one of the next axis. */
static int axis_fits(int64_t size, int has_stride, int64_t stride, int64_t *step)
{
    if (size < 0 || (has_stride && size > 1 && stride != *step)
        || (*step > 0 && size > MOST_VALUES / *step)) {
        return 0;
    }
    *step *= size;
    return 1;
}

/* The destructor of a foreign capsule may run Python code, which must not see an exception of ours. */
void dice_py_release(PyObject *owner)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(owner);
    PyErr_Restore(type, value, trace);
}

/* Refuses an array on a GPU: InputError with the words of the exception that is set, if one is. (torch raises
 * one where the array needs a gradient, or lies on another device than the current one.) */
static int refuse(const char *argument)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *text = value == NULL ? NULL : PyObject_Str(value);
    const char *why = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    const dice_status status =
        why != NULL ? dice_fail(DICE_E_INPUT, "%s: the array on the GPU cannot be had: %s", argument, why)
                    : dice_fail(DICE_E_INPUT,
                                "%s: the array on the GPU must be C-contiguous and aligned, without a mask, "
                                "and have at most 4 dimensions",
                                argument);
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return dice_py_check(status);
}

/* Fills *view from object.__dlpack__(). InputError where that raises, or the array is not C-contiguous. */
static int read_dlpack(PyObject *object, const char *argument, dice_py_view *view)
{
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__"), *nothing = PyTuple_New(0);
    /* the producer makes this stream wait for whatever computes the array */
    PyObject *stream = Py_BuildValue("{s:i}", "stream", DEFAULT_STREAM);
    PyObject *capsule = method == NULL || nothing == NULL || stream == NULL
                          ? NULL
                          : PyObject_Call(method, nothing, stream);
    Py_XDECREF(method);
    Py_XDECREF(nothing);
    Py_XDECREF(stream);
    const dl_tensor *tensor = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, "dltensor");
    int fits = tensor != NULL && tensor->ndim >= 0 && tensor->ndim <= MOST_DIMENSIONS;
    int64_t step = 1;
    for (int axis = fits ? tensor->ndim - 1 : -1; axis >= 0 && fits; axis--) {
        const int has_stride = tensor->strides != NULL;
        view->shape[axis] = (npy_intp)tensor->shape[axis];
        fits = axis_fits(tensor->shape[axis], has_stride, has_stride ? tensor->strides[axis] : 0, &step);
    }
    if (!fits) {
        dice_py_release(capsule);
        return refuse(argument);
    }
    const int bytes = tensor->code == DL_UINT && tensor->bits == 8,
              floats = tensor->code == DL_FLOAT && tensor->bits == 32;
    view->typenum = tensor->lanes != 1 ? NPY_NOTYPE : bytes ? NPY_UINT8 : floats ? NPY_FLOAT32 : NPY_NOTYPE;
    view->data = (char *)tensor->data + tensor->byte_offset;
    view->ndim = tensor->ndim;
    view->owner = capsule; /* nobody else takes the array over, so the capsule's destructor gives it back */
    return 0;
}

/* Fills *view from the interface's dict. InputError where the dict is not as its definition says, or the
 * array is not C-contiguous. */
static int read_interface(PyObject *dict, const char *argument, dice_py_view *view, uintptr_t *stream)
{
    if (!PyDict_Check(dict)) {
        return refuse(argument);
    }
    PyObject *shape = dice_py_item(dict, "shape"), *type = dice_py_item(dict, "typestr"),
             *data = dice_py_item(dict, "data");
    PyObject *strides = dice_py_item(dict, "strides"), *stream_item = dice_py_item(dict, "stream");
    const char *text = type != NULL && PyUnicode_Check(type) ? PyUnicode_AsUTF8(type) : NULL;
    if (text == NULL || shape == NULL || !PyTuple_Check(shape) || PyTuple_GET_SIZE(shape) > MOST_DIMENSIONS
        || data == NULL || !PyTuple_Check(data) || PyTuple_GET_SIZE(data) != 2
        || dice_py_item(dict, "mask") != NULL
        || (strides != NULL
            && (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != PyTuple_GET_SIZE(shape)))) {
        return refuse(argument);
    }
    view->typenum = strcmp(text, "|u1") == 0 ? NPY_UINT8
                  : strcmp(text, "<f4") == 0 ? NPY_FLOAT32
                                             : NPY_NOTYPE;
    view->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data, 0));
    *stream = stream_item == NULL ? 0 : (uintptr_t)PyLong_AsVoidPtr(stream_item);
    view->ndim = (int)PyTuple_GET_SIZE(shape);
    int64_t step = view->typenum == NPY_UINT8 ? 1 : 4;
    int fits = 1;
    for (int axis = view->ndim - 1; axis >= 0 && fits; axis--) {
        const int64_t stride = strides == NULL ? 0 : PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, axis));
        view->shape[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis));
        fits = axis_fits(view->shape[axis], strides != NULL, stride, &step);
    }
    return fits && !PyErr_Occurred() ? 0 : refuse(argument);
}

/* A misaligned float would end every kernel of the process. */
static int is_aligned(const dice_py_view *view)
{
    return view->typenum != NPY_FLOAT32 || (uintptr_t)view->data % sizeof(float) == 0;
}

/* Waits for what computes the array, and looks for NaN. */
static dice_status await(const char *argument, const dice_py_place *place, uintptr_t stream,
                         const dice_py_view *view)
{
    size_t count = view->typenum == NPY_FLOAT32;
    for (int axis = 0; axis < view->ndim; axis++) {
        count *= (size_t)view->shape[axis];
    }
    dice_status status;
    int finite;
    Py_BEGIN_ALLOW_THREADS
    status = place->backend->arrived(&place->options, stream, view->data, count, &finite);
    Py_END_ALLOW_THREADS
    return status == DICE_OK && !finite ? dice_fail(DICE_E_INPUT, "%s: holds NaN or infinity", argument)
                                        : status;
}

/* DLPack first: it alone says when the array is ready, whatever stream computes it. */
int dice_py_find_cuda(PyObject *object, const char *argument, const dice_py_place *place, int *found,
                      dice_py_view *view)
{
    *found = 0;
    if (PyArray_Check(object)) {
        return 0;
    }
    const int by_dlpack = offers_dlpack(object);
    PyObject *dict = by_dlpack ? NULL : PyObject_GetAttrString(object, "__cuda_array_interface__");
    if (dict == NULL && !by_dlpack) {
        PyErr_Clear(); /* not on a GPU */
        return 0;
    }
    *view = (dice_py_view){0};
    uintptr_t stream = DEFAULT_STREAM;
    int failed;
    if (place->backend->arrived == NULL) {
        failed = dice_py_check(dice_fail(
            DICE_E_INPUT, "%s: lives on a GPU; copy it to the host, or use device=\"cuda\"", argument));
    } else {
        failed = by_dlpack ? read_dlpack(object, argument, view)
                           : read_interface(dict, argument, view, &stream);
    }
    if (failed == 0) {
        failed = is_aligned(view) ? dice_py_check(await(argument, place, stream, view)) : refuse(argument);
    }
    dice_py_release(dict);
    if (failed < 0) {
        dice_py_release(view->owner);
        view->owner = NULL;
        return -1;
    }
    *found = 1;
    return 0;
}

int dice_py_find_cuda_floats(PyObject *object, int ndim, const char *argument, const dice_py_place *place,
                             int *found, dice_py_view *view)
{
    if (dice_py_find_cuda(object, argument, place, found, view) < 0) {
        return -1;
    }
    if (*found && (view->typenum != NPY_FLOAT32 || view->ndim != ndim)) {
        dice_py_release(view->owner);
        view->owner = NULL;
        return dice_py_check(dice_fail(DICE_E_INPUT, "%s: on the GPU, want float32 with %d dimension%s",
                                       argument, ndim, ndim == 1 ? "" : "s"));
    }
    return 0;
}

int dice_py_floats(PyObject *object, int ndim, const char *argument, const dice_py_place *place,
                   dice_py_view *view)
{
    int found;
    if (dice_py_find_cuda_floats(object, ndim, argument, place, &found, view) < 0) {
        return -1;
    }
    if (found) {
        return 0;
    }
    PyArrayObject *host = dice_py_array(object, NPY_FLOAT32, ndim, argument);
    if (host == NULL) {
        return -1;
    }
    *view = (dice_py_view){
        .data = PyArray_DATA(host), .typenum = NPY_FLOAT32, .ndim = ndim, .owner = (PyObject *)host};
    memcpy(view->shape, PyArray_DIMS(host), (size_t)ndim * sizeof *view->shape);
    return 0;
}
