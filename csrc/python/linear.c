/* The type Linear: W and b, whole or masked, made ready by a back end. See backend.h, linear_*. */
#include "python/binding.h"

#include <math.h>
#include <string.h>

typedef struct linear_object {
    PyObject_HEAD const dice_backend *backend;
    dice_linear *linear;
    dice_options options;
    Py_ssize_t classes, features;
} linear_object;

static PyObject *linear_type; /* made by dice_py_add_linear */

static void linear_dealloc(PyObject *self)
{
    linear_object *object = (linear_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (object->linear != NULL) {
        object->backend->linear_free(object->linear);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* b (M), on the host or a GPU, for W (M, D). 0 with InputError. */
static int read_bias(PyObject *object, npy_intp classes, const dice_backend *backend,
                     const dice_options *options, dice_py_cuda_array *bias)
{
    const int on_gpu = dice_py_cuda(object, "b", backend, options, bias);
    PyArrayObject *host = on_gpu == 0 ? dice_py_array(object, NPY_FLOAT32, 1, "b") : NULL;
    if (host != NULL) {
        *bias = (dice_py_cuda_array){.data = PyArray_DATA(host),
                                     .typenum = NPY_FLOAT32,
                                     .ndim = 1,
                                     .shape = {PyArray_DIM(host, 0)},
                                     .owner = (PyObject *)host};
    } else if (on_gpu < 1) {
        return 0;
    }
    if (bias->typenum != NPY_FLOAT32 || bias->ndim != 1) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "b: on the GPU, want float32 with 1 dimension"));
        return 0;
    }
    if (bias->shape[0] != classes) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "b: got %zd values, W wants %zd", bias->shape[0], classes));
        return 0;
    }
    return 1;
}

/* keep (M, D), 1 where a weight stays. NULL with InputError. */
static PyArrayObject *read_keep(PyObject *object, const npy_intp *shape)
{
    PyArrayObject *keep = dice_py_array(object, NPY_UINT8, 2, "keep");
    for (int axis = 0; keep != NULL && axis < 2; axis++) {
        const Py_ssize_t got = PyArray_DIM(keep, axis);
        if (got != shape[axis]) {
            Py_CLEAR(keep);
            dice_py_raise(
                dice_fail(DICE_E_INPUT, "keep: got %zd along axis %d, W wants %zd", got, axis, shape[axis]));
        }
    }
    return keep;
}

/* A new Linear of host or device memory; NULL with an exception set. */
static PyObject *make_linear(PyTypeObject *type, const float *weight, const float *bias, const uint8_t *keep,
                             npy_intp classes, npy_intp features, const dice_backend *backend,
                             const dice_options *options)
{
    if (classes == 0 || features == 0 || classes > INT32_MAX) {
        return dice_py_raise(
            dice_fail(DICE_E_INPUT, "W: got shape (%zd, %zd), want 1 to 2^31 - 1 classes and some features",
                      classes, features));
    }
    linear_object *made = (linear_object *)type->tp_alloc(type, 0);
    if (made == NULL) {
        return NULL;
    }
    made->backend = backend;
    made->options = *options;
    made->classes = classes;
    made->features = features;
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = backend->linear_create(weight, bias, keep, (size_t)classes,
                                                           (size_t)features, options, &made->linear);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        Py_DECREF(made);
        return dice_py_raise(status);
    }
    return (PyObject *)made;
}

PyObject *dice_py_linear(const float *weight, const float *bias, npy_intp classes, npy_intp features,
                         const dice_backend *backend, const dice_options *options)
{
    return make_linear((PyTypeObject *)linear_type, weight, bias, NULL, classes, features, backend, options);
}

dice_status dice_py_linear_logits(PyObject *linear, const float *h, size_t n, float *logits)
{
    const linear_object *object = (const linear_object *)linear;
    const dice_linear_outputs outputs = {.logits = logits};
    return object->backend->linear_forward(object->linear, h, n, INFINITY, &outputs);
}

static PyObject *linear_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"W", "b", "keep", "device", "isa", "plain_products", NULL};
    PyObject *weight_object, *bias_object, *keep_object = Py_None;
    const char *device = "cpu", *isa = NULL;
    int plain_products = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|Oszp", names, &weight_object, &bias_object,
                                     &keep_object, &device, &isa, &plain_products)) {
        return NULL;
    }
    dice_options options = {0};
    const dice_backend *backend = NULL;
    dice_status status = dice_py_options(isa, "float32", &options);
    options.plain_products = plain_products;
    if (status == DICE_OK) {
        status = dice_backend_find(device, &options, &backend);
    }
    if (status != DICE_OK) {
        return dice_py_raise(status);
    }
    PyObject *made = NULL;
    PyArrayObject *keep = NULL;
    dice_py_cuda_array weight = {0}, bias = {0};
    if (dice_py_matrix(weight_object, "W", backend, &options, &weight)
        && read_bias(bias_object, weight.shape[0], backend, &options, &bias)
        && (keep_object == Py_None || (keep = read_keep(keep_object, weight.shape)) != NULL)) {
        made = make_linear(type, weight.data, bias.data, keep == NULL ? NULL : PyArray_DATA(keep),
                           weight.shape[0], weight.shape[1], backend, &options);
    }
    dice_py_release(weight.owner);
    dice_py_release(bias.owner);
    Py_XDECREF(keep);
    return made;
}

/* What forward can return, in the order of `wanted` below. */
enum { ENERGY, MSP, MAXLOGIT, LABEL, LOGITS, OUTPUTS };
static const char *const output_names[OUTPUTS] = {"energy", "msp", "maxlogit", "label", "logits"};
static const int output_types[OUTPUTS] = {NPY_FLOAT64, NPY_FLOAT64, NPY_FLOAT64, NPY_INT32, NPY_FLOAT32};

static int output_of(PyObject *name)
{
    for (int output = 0; output < OUTPUTS; output++) {
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, output_names[output]) == 0) {
            return output;
        }
    }
    dice_py_raise(dice_fail(DICE_E_INPUT, "score: not one of energy, msp, maxlogit, label, logits"));
    return -1;
}

/* forward(h, clip, *names) -> tuple of arrays */
static PyObject *linear_forward(PyObject *self, PyObject *args)
{
    linear_object *object = (linear_object *)self;
    const Py_ssize_t count = PyTuple_GET_SIZE(args) - 2;
    if (count < 1) {
        PyErr_SetString(PyExc_TypeError, "forward(h, clip, name, ...) wants at least three arguments");
        return NULL;
    }
    const double clip = PyFloat_AsDouble(PyTuple_GET_ITEM(args, 1));
    if (clip == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (isnan(clip) || clip == -INFINITY) {
        return dice_py_raise(
            dice_fail(DICE_E_INPUT, "clip: got %g, want a number above minus infinity", clip));
    }
    dice_py_cuda_array h = {0};
    if (!dice_py_matrix(PyTuple_GET_ITEM(args, 0), "h", object->backend, &object->options, &h)) {
        return NULL;
    }
    const npy_intp *dims = h.shape;
    void *data[OUTPUTS] = {NULL};
    PyObject *result = PyTuple_New(count);
    if (result == NULL) {
        goto failed;
    }
    if (dims[1] != object->features) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: got %zd features, W wants %zd", (Py_ssize_t)dims[1],
                                object->features));
        goto failed;
    }
    npy_intp shape[2] = {dims[0], object->classes};
    for (Py_ssize_t i = 0; i < count; i++) {
        const int output = output_of(PyTuple_GET_ITEM(args, i + 2));
        if (output >= 0 && data[output] != NULL) {
            dice_py_raise(dice_fail(DICE_E_INPUT, "score: %s is named twice", output_names[output]));
            goto failed;
        }
        PyObject *array = output < 0
                            ? NULL
                            : PyArray_SimpleNew(output == LOGITS ? 2 : 1, shape, output_types[output]);
        if (array == NULL) {
            goto failed;
        }
        data[output] = PyArray_DATA((PyArrayObject *)array);
        PyTuple_SET_ITEM(result, i, array);
    }
    const dice_linear_outputs outputs = {.energy = data[ENERGY],
                                         .msp = data[MSP],
                                         .maxlogit = data[MAXLOGIT],
                                         .label = data[LABEL],
                                         .logits = data[LOGITS]};
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = object->backend->linear_forward(object->linear, h.data, (size_t)shape[0],
                                                                    (float)clip, &outputs);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        dice_py_raise(status);
        goto failed;
    }
    dice_py_release(h.owner);
    return result;
failed:
    dice_py_release(h.owner);
    Py_XDECREF(result);
    return NULL;
}

static PyObject *linear_info(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    linear_object *object = (linear_object *)self;
    size_t bytes;
    const char *kind = object->backend->linear_info(object->linear, &bytes);
    return Py_BuildValue("(sn)", kind, (Py_ssize_t)bytes);
}

static PyMethodDef linear_methods[] = {
    {"forward", linear_forward, METH_VARARGS,
     "forward(h, clip, *names) -> tuple of one array a name, from W min(h, clip) + b, h (N, D)\n\n"
     "energy, msp, maxlogit: float64 (N,); label: int32 (N,); logits: float32 (N, M).\n"
     "The same bits for every N and number of threads."},
    {"info", linear_info, METH_NOARGS, "info() -> (\"dense\", \"sparse\" or \"both\", bytes)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot linear_slots[] = {
    {Py_tp_doc,
     "Linear(W, b, keep=None, device=\"cpu\", isa=None, plain_products=False)\n\n"
     "W (M, D) and b (M,), or what the uint8 mask keep (M, D) leaves of W. plain_products: on a GPU cuBLAS\n"
     "may form the products, whose last bits depend on N."},
    {Py_tp_new, linear_new},
    {Py_tp_dealloc, linear_dealloc},
    {Py_tp_methods, linear_methods},
    {0, NULL},
};

static PyType_Spec linear_spec = {
    .name = "dice._core.Linear",
    .basicsize = sizeof(linear_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = linear_slots,
};

int dice_py_add_linear(PyObject *module)
{
    linear_type = PyType_FromModuleAndSpec(module, &linear_spec, NULL);
    return linear_type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)linear_type);
}
