/* Networks: building one from named arrays, and running it. */
#include "python/binding.h"

#include <string.h>
#include <structmember.h>

#include "backend/backend.h"
#include "base/memory.h"
#include "nn/build.h"

typedef struct network {
    PyObject_HEAD const dice_backend *backend;
    dice_net *net;
    PyObject *linear; /* a Linear of W and b on the same back end: makes the logits */
    dice_options options;
    Py_ssize_t features, classes;
    int image_size;
    PyObject *arch, *isa, *precision, *mean, *std, *weight, *bias;
} network;

static const char *const precisions[] = {"float32", "bf16x3", "bf16"};

dice_status dice_py_options(const char *isa, const char *precision, dice_options *options)
{
    const dice_status status = dice_isa_select(isa, &options->isa);
    if (status != DICE_OK) {
        return status;
    }
    for (int p = DICE_FLOAT32; p <= DICE_BF16; p++) {
        if (strcmp(precision, precisions[p]) == 0) {
            options->precision = (dice_precision)p;
            return DICE_OK;
        }
    }
    return dice_fail(DICE_E_INPUT, "precision %s: not one of float32, bf16x3, bf16", precision);
}

/* One named array as a dice_weight; *array keeps its data alive. */
static int read_weight(PyObject *key, PyObject *value, dice_weight *weight, PyArrayObject **array)
{
    weight->name = PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
    if (weight->name == NULL || !PyArray_Check(value)) {
        PyErr_Clear();
        dice_py_raise(dice_fail(DICE_E_INPUT, "weights: want a dict of names to numpy arrays"));
        return -1;
    }
    weight->ndim = PyArray_NDIM((PyArrayObject *)value);
    if (weight->ndim > DICE_WEIGHT_DIMS) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "layer %s: got %d dimensions, want at most %d", weight->name,
                                weight->ndim, DICE_WEIGHT_DIMS));
        return -1;
    }
    for (int i = 0; i < weight->ndim; i++) {
        const npy_intp size = PyArray_DIM((PyArrayObject *)value, i);
        if (size < 1 || size > INT32_MAX) {
            dice_py_raise(dice_fail(DICE_E_INPUT, "layer %s: axis %d has size %zd", weight->name, i, size));
            return -1;
        }
        weight->shape[i] = (int32_t)size;
    }
    char argument[DICE_WEIGHT_NAME + 8];
    snprintf(argument, sizeof argument, "layer %s", weight->name);
    *array = dice_py_array(value, NPY_FLOAT32, weight->ndim, argument);
    if (*array == NULL) {
        return -1;
    }
    weight->data = PyArray_DATA(*array);
    return 0;
}

/* The graph of `arch` (NULL: recognised) with the arrays of `dict`; NULL with an exception set. */
static dice_graph *build_graph(const char *arch, PyObject *dict)
{
    void *items = NULL, *arrays_memory = NULL;
    dice_graph *graph = NULL;
    const size_t room = (size_t)PyDict_Size(dict);
    dice_weights weights = {0};
    dice_status status = dice_alloc_zero(room, sizeof(dice_weight), &items);
    if (status == DICE_OK) {
        status = dice_alloc_zero(room, sizeof(PyArrayObject *), &arrays_memory);
    }
    if (status != DICE_OK) {
        dice_py_raise(status);
        goto done;
    }
    weights.items = items;
    PyArrayObject **arrays = arrays_memory;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
        if (read_weight(key, value, &weights.items[weights.count], &arrays[weights.count]) < 0) {
            goto done;
        }
        weights.count++;
    }
    status = dice_build(arch, &weights, &graph);
    if (status != DICE_OK) {
        dice_py_raise(status);
    }
done:
    for (size_t i = 0; i < weights.count; i++) {
        Py_DECREF(((PyArrayObject **)arrays_memory)[i]);
    }
    dice_free(items);
    dice_free(arrays_memory);
    return graph;
}

/* values[3] = the numbers of `object`, where that is not None. */
static int read_triple(PyObject *object, const char *argument, float values[3])
{
    if (object == Py_None) {
        return 0;
    }
    PyArrayObject *array = dice_py_array(object, NPY_FLOAT32, 1, argument);
    if (array == NULL) {
        return -1;
    }
    const int fits = PyArray_SIZE(array) == 3;
    if (fits) {
        memcpy(values, PyArray_DATA(array), 3 * sizeof(float));
    } else {
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: got %zd values, want 3", argument, PyArray_SIZE(array)));
    }
    Py_DECREF(array);
    return fits ? 0 : -1;
}

static PyObject *copy_array(const float *data, int ndim, const npy_intp *shape)
{
    PyObject *array = PyArray_SimpleNew(ndim, shape, NPY_FLOAT32);
    if (array != NULL) {
        memcpy(PyArray_DATA((PyArrayObject *)array), data, (size_t)PyArray_NBYTES((PyArrayObject *)array));
        PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    }
    return array;
}

static PyObject *triple(const float v[3])
{
    return Py_BuildValue("(fff)", (double)v[0], (double)v[1], (double)v[2]);
}

static PyTypeObject network_type;

/* The Python object of a graph on a back end; NULL with an exception set. */
static PyObject *make_network(const dice_graph *graph, const dice_backend *backend,
                              const dice_options *options)
{
    network *self = (network *)network_type.tp_alloc(&network_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->backend = backend;
    self->options = *options;
    self->features = graph->tensors[graph->output].channels;
    self->classes = graph->classes;
    self->image_size = graph->image_size;
    const npy_intp shape[2] = {self->classes, self->features};
    self->arch = PyUnicode_FromString(graph->arch);
    self->isa = PyUnicode_FromString(dice_isa_name(options->isa));
    self->precision = PyUnicode_FromString(precisions[options->precision]);
    self->mean = triple(graph->mean);
    self->std = triple(graph->std);
    self->weight = copy_array(graph->head_weight, 2, shape);
    self->bias = copy_array(graph->head_bias, 1, shape);
    if (self->arch == NULL || self->isa == NULL || self->precision == NULL || self->mean == NULL
        || self->std == NULL || self->weight == NULL || self->bias == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = backend->net_create(graph, options, &self->net);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        Py_DECREF(self);
        return dice_py_raise(status);
    }
    self->linear = dice_py_linear(graph->head_weight, graph->head_bias, self->classes, self->features,
                                  backend, options);
    if (self->linear == NULL) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static const char graph_name[] = "dice graph";

static void free_graph(PyObject *capsule)
{
    dice_graph_free(PyCapsule_GetPointer(capsule, graph_name));
}

static PyObject *py_build_graph(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *arch;
    PyObject *dict, *mean, *std;
    if (!PyArg_ParseTuple(args, "zO!OO", &arch, &PyDict_Type, &dict, &mean, &std)) {
        return NULL;
    }
    PyObject *made = NULL;
    dice_graph *graph = build_graph(arch, dict);
    if (graph == NULL || read_triple(mean, "normalize: mean", graph->mean) < 0
        || read_triple(std, "normalize: std", graph->std) < 0) {
        goto done;
    }
    const dice_status status = dice_graph_check(graph); /* again, for the given normalisation */
    made = status == DICE_OK ? PyCapsule_New(graph, graph_name, free_graph) : dice_py_raise(status);
done:
    if (made == NULL) {
        dice_graph_free(graph);
    }
    return made;
}

static PyObject *py_make_network(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *capsule;
    const char *precision, *isa, *device;
    if (!PyArg_ParseTuple(args, "Oszs", &capsule, &precision, &isa, &device)) {
        return NULL;
    }
    const dice_graph *graph = PyCapsule_GetPointer(capsule, graph_name);
    if (graph == NULL) {
        return NULL;
    }
    dice_options options = {0};
    const dice_backend *backend = NULL;
    dice_status status = dice_py_options(isa, precision, &options);
    if (status == DICE_OK) {
        status = dice_backend_find(device, &options, &backend);
    }
    return status == DICE_OK ? make_network(graph, backend, &options) : dice_py_raise(status);
}

/* *view = images that live on a GPU: 1, 0 where they do not, -1 with an exception set. The caller releases
 * *owner. */
static int read_cuda_images(const network *self, PyObject *object, dice_images *view, PyObject **owner)
{
    dice_py_cuda_array array = {0};
    const int found = dice_py_cuda(object, "images", self->backend, &self->options, &array);
    if (found < 1) {
        return found;
    }
    const int bytes = array.typenum == NPY_UINT8;
    if (array.typenum == NPY_NOTYPE || array.ndim != 4 || array.shape[bytes ? 3 : 1] != 3
        || array.shape[bytes ? 1 : 2] > INT32_MAX || array.shape[bytes ? 2 : 3] > INT32_MAX) {
        dice_py_release(array.owner);
        dice_py_raise(
            dice_fail(DICE_E_INPUT, "images: on the GPU, want uint8 (N, H, W, 3) or float32 (N, 3, H, W)"));
        return -1;
    }
    *view = (dice_images){.bytes = bytes ? array.data : NULL,
                          .floats = bytes ? NULL : array.data,
                          .n = (size_t)array.shape[0],
                          .height = (int32_t)array.shape[bytes ? 1 : 2],
                          .width = (int32_t)array.shape[bytes ? 2 : 3]};
    *owner = array.owner;
    return 1;
}

/* images as an array of its own dtype and *view of it; NULL with an exception set. */
static PyArrayObject *read_images(PyObject *object, dice_images *view)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (any == NULL) {
        return NULL;
    }
    const int type = PyArray_TYPE(any);
    const int channels_axis = type == NPY_UINT8 ? 3 : 1;
    PyArrayObject *array = NULL;
    if (type != NPY_UINT8 && type != NPY_FLOAT32) {
        PyObject *name = PyObject_Str((PyObject *)PyArray_DESCR(any));
        dice_py_raise(dice_fail(DICE_E_INPUT,
                                "images: got dtype %s, want uint8 (N, H, W, 3) or float32 (N, 3, H, W)",
                                name == NULL ? "?" : PyUnicode_AsUTF8(name)));
        Py_XDECREF(name);
    } else if (PyArray_NDIM(any) != 4 || PyArray_DIM(any, channels_axis) != 3) {
        PyObject *shape = PyObject_GetAttrString((PyObject *)any, "shape");
        PyObject *text = shape == NULL ? NULL : PyObject_Str(shape);
        dice_py_raise(dice_fail(DICE_E_INPUT, "images: got %s %s, want %s",
                                type == NPY_UINT8 ? "uint8" : "float32",
                                text == NULL ? "?" : PyUnicode_AsUTF8(text),
                                type == NPY_UINT8 ? "(N, H, W, 3)" : "(N, 3, H, W)"));
        Py_XDECREF(text);
        Py_XDECREF(shape);
    } else {
        array = dice_py_array((PyObject *)any, type, 4, "images");
    }
    Py_DECREF(any);
    if (array == NULL) {
        return NULL;
    }
    const int height_axis = type == NPY_UINT8 ? 1 : 2;
    const npy_intp height = PyArray_DIM(array, height_axis), width = PyArray_DIM(array, height_axis + 1);
    *view = (dice_images){.n = (size_t)PyArray_DIM(array, 0),
                          .height = (int32_t)(height < INT32_MAX ? height : INT32_MAX),
                          .width = (int32_t)(width < INT32_MAX ? width : INT32_MAX)};
    if (type == NPY_UINT8) {
        view->bytes = PyArray_DATA(array);
    } else {
        view->floats = PyArray_DATA(array);
    }
    return array;
}

/* h (N, D) of images; NULL with an exception set. */
static PyObject *features(PyObject *object, PyObject *argument)
{
    network *self = (network *)object;
    dice_images images;
    PyObject *owner = NULL;
    const int on_gpu = read_cuda_images(self, argument, &images, &owner);
    if (on_gpu < 0 || (on_gpu == 0 && (owner = (PyObject *)read_images(argument, &images)) == NULL)) {
        return NULL;
    }
    const npy_intp shape[2] = {(npy_intp)images.n, self->features};
    PyObject *h = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (h != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = self->backend->net_forward(self->net, &images,
                                                                   PyArray_DATA((PyArrayObject *)h));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(h);
            dice_py_raise(status);
        }
    }
    dice_py_release(owner);
    return h;
}

static PyObject *forward(PyObject *object, PyObject *argument)
{
    const network *self = (network *)object;
    PyObject *h = features(object, argument), *z = NULL, *result = NULL;
    if (h == NULL) {
        return NULL;
    }
    const npy_intp shape[2] = {PyArray_DIM((PyArrayObject *)h, 0), self->classes};
    if ((z = PyArray_SimpleNew(2, shape, NPY_FLOAT32)) != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_py_linear_logits(self->linear, PyArray_DATA((PyArrayObject *)h),
                                                              (size_t)shape[0],
                                                              PyArray_DATA((PyArrayObject *)z));
        Py_END_ALLOW_THREADS result = status == DICE_OK ? PyTuple_Pack(2, h, z) : dice_py_raise(status);
    }
    Py_DECREF(h);
    Py_XDECREF(z);
    return result;
}

static dice_net_info info_of(PyObject *self)
{
    dice_net_info info;
    ((network *)self)->backend->net_info(((network *)self)->net, &info);
    return info;
}

static PyObject *get_kernels(PyObject *self, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(info_of(self).kernels);
}

static PyObject *get_arena_bytes(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(info_of(self).arena_bytes);
}

static PyObject *get_weight_bytes(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(info_of(self).weight_bytes);
}

static PyObject *get_methods(PyObject *self, void *Py_UNUSED(closure))
{
    const dice_backend *backend = ((network *)self)->backend;
    PyObject *list = PyList_New(0);
    const char *layer, *method;
    for (int32_t op = 0; list != NULL && backend->net_method != NULL; op++) {
        method = backend->net_method(((network *)self)->net, op, &layer);
        if (method == NULL) {
            break;
        }
        PyObject *pair = Py_BuildValue("ss", layer, method);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    return list;
}

static void network_dealloc(PyObject *object)
{
    network *self = (network *)object;
    if (self->net != NULL) {
        self->backend->net_free(self->net);
    }
    Py_XDECREF(self->linear);
    Py_XDECREF(self->arch);
    Py_XDECREF(self->isa);
    Py_XDECREF(self->precision);
    Py_XDECREF(self->mean);
    Py_XDECREF(self->std);
    Py_XDECREF(self->weight);
    Py_XDECREF(self->bias);
    Py_TYPE(object)->tp_free(object);
}

static PyMethodDef network_methods[] = {
    {"features", features, METH_O,
     "features(images) -> h, float32 (N, D).\n\n"
     "images: uint8 (N, H, W, 3), or float32 (N, 3, H, W) already normalised."},
    {"forward", forward, METH_O, "forward(images) -> (h, z): also the logits, float32 (N, M)."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef network_members[] = {
    {"arch", T_OBJECT, offsetof(network, arch), READONLY, "name of the architecture"},
    {"isa", T_OBJECT, offsetof(network, isa), READONLY, "instruction set asked for"},
    {"precision", T_OBJECT, offsetof(network, precision), READONLY, "float32, bf16x3 or bf16"},
    {"mean", T_OBJECT, offsetof(network, mean), READONLY, "mean of the normalisation, RGB in 0..1"},
    {"std", T_OBJECT, offsetof(network, std), READONLY, "standard deviation of the normalisation"},
    {"weight", T_OBJECT, offsetof(network, weight), READONLY, "last layer's W, float32 (M, D)"},
    {"bias", T_OBJECT, offsetof(network, bias), READONLY, "last layer's b, float32 (M,)"},
    {"linear", T_OBJECT, offsetof(network, linear), READONLY, "the Linear of W and b that makes the logits"},
    {"image_size", T_INT, offsetof(network, image_size), READONLY, "side of the images it was made for"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef network_getset[] = {
    {"kernels", get_kernels, NULL, "what really runs: \"reference\", \"avx512\", ...", NULL},
    {"methods", get_methods, NULL, "[(layer, how it is computed)], where there is more than one way", NULL},
    {"arena_bytes", get_arena_bytes, NULL, "bytes of activations, for the last image size", NULL},
    {"weight_bytes", get_weight_bytes, NULL, "bytes of packed weights", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject network_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dice._core.Network",
    .tp_doc = "A network made ready by one back end; made by make_network.",
    .tp_basicsize = sizeof(network),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = network_dealloc,
    .tp_methods = network_methods,
    .tp_members = network_members,
    .tp_getset = network_getset,
};

static PyMethodDef methods[] = {
    {"build_graph", py_build_graph, METH_VARARGS,
     "build_graph(arch, weights, mean, std) -> graph\n\n"
     "arch: str, or None to recognise it; weights: {name: array}, copied; mean, std: three floats or None "
     "for the\n"
     "architecture's. The graph can be given to make_network as often as wanted."},
    {"make_network", py_make_network, METH_VARARGS,
     "make_network(graph, precision, isa, device) -> Network\n\n"
     "isa: str or None for DICE_ISA, else the native one."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_network(PyObject *module)
{
    if (PyType_Ready(&network_type) < 0
        || PyModule_AddObjectRef(module, "Network", (PyObject *)&network_type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
