/* The type Network: a Graph made ready by a back end, and run. See net_* in backend/backend.h. */
#include "python/binding.h"

#include <string.h>
#include <structmember.h>

#include "base/sizes.h"
#include "nn/plan.h"

typedef struct network {
    PyObject_HEAD
    dice_py_place place;
    dice_net *net;
    dice_graph *outline; /* without weights: gives the output's size for an image's */
    int is_pooled;       /* a global mean writes the output: it has one pixel, whatever the image */
    PyObject *linear;    /* a Linear of W and b at the same place; None where the graph has no head */
    Py_ssize_t features, classes;
    int32_t channels; /* of the input */
    int image_size;
    PyObject *arch, *isa, *precision, *mean, *std, *weight, *bias;
} network;

static void network_dealloc(PyObject *object)
{
    network *self = (network *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->net != NULL) {
        self->place.backend->net_free(self->net);
    }
    dice_graph_free(self->outline);
    Py_XDECREF(self->linear);
    Py_XDECREF(self->arch);
    Py_XDECREF(self->isa);
    Py_XDECREF(self->precision);
    Py_XDECREF(self->mean);
    Py_XDECREF(self->std);
    Py_XDECREF(self->weight);
    Py_XDECREF(self->bias);
    type->tp_free(object);
    Py_DECREF(type);
}

/* A read-only copy. */
static PyObject *copy_array(const float *data, int ndim, const npy_intp *shape)
{
    PyObject *array = PyArray_SimpleNew(ndim, shape, NPY_FLOAT32);
    if (array != NULL) {
        memcpy(dice_py_data(array), data, (size_t)PyArray_NBYTES((PyArrayObject *)array));
        PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    }
    return array;
}

static PyObject *triple(const float v[3])
{
    return Py_BuildValue("(fff)", (double)v[0], (double)v[1], (double)v[2]);
}

/* Sets the attributes that describe the graph. */
static int set_attributes(network *self, const dice_graph *graph)
{
    const npy_intp shape[2] = {graph->classes, graph->tensors[graph->output].channels};
    self->features = shape[1];
    self->classes = shape[0];
    self->channels = graph->tensors[graph->input].channels;
    self->image_size = graph->image_size;
    self->arch = PyUnicode_FromString(graph->arch);
    self->isa = PyUnicode_FromString(dice_isa_name(self->place.options.isa));
    self->precision = PyUnicode_FromString(dice_py_precision_name(self->place.options.precision));
    self->mean = triple(graph->mean);
    self->std = triple(graph->std);
    const int has_head = graph->classes > 0;
    self->weight = has_head ? copy_array(graph->head_weight, 2, shape) : Py_NewRef(Py_None);
    self->bias = has_head ? copy_array(graph->head_bias, 1, shape) : Py_NewRef(Py_None);
    return self->arch == NULL || self->isa == NULL || self->precision == NULL || self->mean == NULL
                || self->std == NULL || self->weight == NULL || self->bias == NULL
             ? -1
             : 0;
}

static int is_pooled(const dice_graph *graph)
{
    const int32_t output = dice_tensor_root(graph, graph->output);
    for (int32_t i = 0; i < graph->n_ops; i++) {
        const dice_op *op = &graph->ops[i];
        if (op->kind == DICE_OP_GLOBAL_MEAN && dice_tensor_root(graph, op->y) == output) {
            return 1;
        }
    }
    return 0;
}

/* Makes what runs: the network on its back end, and the Linear of its head. */
static int make_ready(network *self, const dice_py_module *state, const dice_graph *graph)
{
    const dice_py_place asked = self->place;
    dice_status status = dice_backend_for_graph(graph, &self->place.options, &self->place.backend);
    Py_BEGIN_ALLOW_THREADS
    if (status == DICE_OK) {
        status = self->place.backend->net_create(graph, &self->place.options, &self->net);
    }
    if (status == DICE_OK) {
        status = dice_graph_outline(graph, &self->outline);
    }
    Py_END_ALLOW_THREADS
    if (dice_py_check(status) < 0) {
        return -1;
    }
    self->is_pooled = is_pooled(graph);
    self->linear = graph->classes == 0 ? Py_NewRef(Py_None)
                                       : dice_py_linear_new(state, graph->head_weight, graph->head_bias,
                                                            self->classes, self->features, &asked);
    return self->linear == NULL ? -1 : 0;
}

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"graph", "precision", "isa", "device", NULL};
    const dice_py_module *state = PyType_GetModuleState(type);
    PyObject *graph_object;
    const char *precision = "float32", *isa = NULL, *device = "cpu";
    const dice_graph *graph;
    dice_py_place place;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|szs", names, &graph_object, &precision, &isa, &device)
        || dice_py_graph(state, graph_object, &graph) < 0
        || dice_py_find_place(device, isa, precision, &place) < 0) {
        return NULL;
    }
    network *self = (network *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->place = place;
    if (set_attributes(self, graph) < 0 || make_ready(self, state, graph) < 0) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* Whether a view is uint8 (N, H, W, 3) or float32 (N, C, H, W). */
static int are_images(const network *self, const dice_py_view *view)
{
    const int bytes = view->typenum == NPY_UINT8;
    return (bytes ? self->channels == 3 : view->typenum == NPY_FLOAT32) && view->ndim == 4
        && view->shape[bytes ? 3 : 1] == self->channels;
}

/* A view as the core takes images. A side that does not fit 32 bits becomes the largest that does, which the
 * planner refuses. */
static dice_images images_of(const dice_py_view *view)
{
    const int bytes = view->typenum == NPY_UINT8;
    const npy_intp height = view->shape[bytes ? 1 : 2], width = view->shape[bytes ? 2 : 3];
    return (dice_images){.bytes = bytes ? view->data : NULL,
                         .floats = bytes ? NULL : view->data,
                         .n = (size_t)view->shape[0],
                         .height = (int32_t)dice_least((size_t)height, INT32_MAX),
                         .width = (int32_t)dice_least((size_t)width, INT32_MAX)};
}

/* InputError for images of another type or shape, with what is wanted; NULL stands for images on a GPU. */
static int refuse_images(const network *self, PyArrayObject *images)
{
    const int takes_bytes = self->channels == 3, typenum = images == NULL ? NPY_NOTYPE : PyArray_TYPE(images);
    char planes[48], both[96];
    snprintf(planes, sizeof planes, "(N, %d, H, W)", self->channels);
    snprintf(both, sizeof both, "%sfloat32 %s", takes_bytes ? "uint8 (N, H, W, 3) or " : "", planes);
    if (images == NULL) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "images: on the GPU, want %s", both));
    }
    const int known = typenum == NPY_FLOAT32 || (typenum == NPY_UINT8 && takes_bytes);
    PyObject *described = known ? PyObject_GetAttrString((PyObject *)images, "shape")
                                : Py_NewRef((PyObject *)PyArray_DESCR(images));
    PyObject *text = described == NULL ? NULL : PyObject_Str(described);
    const char *got = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    if (got != NULL) {
        dice_py_check(!known ? dice_fail(DICE_E_INPUT, "images: got dtype %s, want %s", got, both)
                      : typenum == NPY_UINT8
                          ? dice_fail(DICE_E_INPUT, "images: got uint8 %s, want (N, H, W, 3)", got)
                          : dice_fail(DICE_E_INPUT, "images: got float32 %s, want %s", got, planes));
    }
    Py_XDECREF(described);
    Py_XDECREF(text);
    return -1;
}

/* *images = images on a GPU or on the host, finite; the caller releases *owner. */
static int read_images(const network *self, PyObject *object, dice_images *images, PyObject **owner)
{
    dice_py_view view;
    int found;
    if (dice_py_find_cuda(object, "images", &self->place, &found, &view) < 0) {
        return -1;
    }
    if (found) {
        if (!are_images(self, &view)) {
            dice_py_release(view.owner);
            return refuse_images(self, NULL);
        }
        *owner = view.owner;
        *images = images_of(&view);
        return 0;
    }
    PyArrayObject *any = dice_py_as_array(object, "images"), *array = NULL;
    if (any == NULL) {
        return -1;
    }
    const int ndim = PyArray_NDIM(any);
    view = (dice_py_view){.typenum = PyArray_TYPE(any), .ndim = ndim};
    for (int axis = 0; axis < ndim && axis < 4; axis++) {
        view.shape[axis] = PyArray_DIM(any, axis);
    }
    if (!are_images(self, &view)) {
        refuse_images(self, any);
    } else if ((array = dice_py_array((PyObject *)any, view.typenum, 4, "images")) != NULL) {
        view.data = PyArray_DATA(array);
        *images = images_of(&view);
        *owner = (PyObject *)array;
    }
    Py_DECREF(any);
    return array == NULL ? -1 : 0;
}

static size_t no_bytes(int32_t channels, int32_t height, int32_t width)
{
    (void)channels, (void)height, (void)width;
    return 0;
}

/* shape[2] = height and width of the output for these images. */
static dice_status output_size(const network *self, const dice_images *images, npy_intp shape[2])
{
    dice_plan plan;
    const dice_status status = dice_plan_make(self->outline, images->height, images->width, no_bytes, &plan);
    if (status == DICE_OK) {
        shape[0] = plan.height[self->outline->output];
        shape[1] = plan.width[self->outline->output];
        dice_plan_free(&plan);
    }
    return status;
}

/* The output for images: (N, D, H', W') or, where `pooled`, (N, D), which an output of one pixel fits. */
static PyObject *run(const network *self, PyObject *argument, int pooled)
{
    dice_images images;
    PyObject *owner = NULL, *result = NULL;
    if (read_images(self, argument, &images, &owner) < 0) {
        return NULL;
    }
    npy_intp shape[4] = {(npy_intp)images.n, self->features, 1, 1};
    dice_status status = pooled && self->is_pooled ? DICE_OK : output_size(self, &images, shape + 2);
    if (status == DICE_OK && pooled && (shape[2] != 1 || shape[3] != 1)) {
        status = dice_fail(DICE_E_INPUT,
                           "images: the network makes features of %zd x %zd pixels of them, want 1 x 1",
                           (Py_ssize_t)shape[2], (Py_ssize_t)shape[3]);
    }
    if (dice_py_check(status) == 0
        && (result = PyArray_SimpleNew(pooled ? 2 : 4, shape, NPY_FLOAT32)) != NULL) {
        float *to = dice_py_data(result);
        Py_BEGIN_ALLOW_THREADS
        status = self->place.backend->net_forward(self->net, &images, to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
    dice_py_release(owner);
    return result;
}

static PyObject *features(PyObject *self, PyObject *images)
{
    return run((network *)self, images, 1);
}

static PyObject *maps(PyObject *self, PyObject *images)
{
    return run((network *)self, images, 0);
}

static PyObject *forward(PyObject *object, PyObject *images)
{
    const network *self = (network *)object;
    if (self->linear == Py_None) {
        dice_py_check(
            dice_fail(DICE_E_INPUT, "forward: the network has no head, so no logits; use features"));
        return NULL;
    }
    PyObject *h = features(object, images), *z = NULL, *result = NULL;
    if (h == NULL) {
        return NULL;
    }
    const npy_intp shape[2] = {PyArray_DIM((PyArrayObject *)h, 0), self->classes};
    if ((z = PyArray_SimpleNew(2, shape, NPY_FLOAT32)) != NULL) {
        const float *from = dice_py_data(h);
        float *to = dice_py_data(z);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_py_linear_logits(self->linear, from, (size_t)shape[0], to);
        Py_END_ALLOW_THREADS
        if (dice_py_check(status) == 0) {
            result = PyTuple_Pack(2, h, z);
        }
    }
    Py_DECREF(h);
    Py_XDECREF(z);
    return result;
}

static dice_net_info info_of(PyObject *self)
{
    dice_net_info info;
    ((network *)self)->place.backend->net_info(((network *)self)->net, &info);
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

static PyObject *get_algorithms(PyObject *self, void *Py_UNUSED(closure))
{
    const dice_backend *backend = ((network *)self)->place.backend;
    PyObject *list = PyList_New(0);
    const char *layer, *algorithm;
    for (int32_t op = 0; list != NULL && backend->net_algorithm != NULL; op++) {
        algorithm = backend->net_algorithm(((network *)self)->net, op, &layer);
        if (algorithm == NULL) {
            break;
        }
        PyObject *pair = Py_BuildValue("ss", layer, algorithm);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    return list;
}

static PyMethodDef network_methods[] = {
    {"features", features, METH_O,
     "features($self, images, /)\n--\n\n"
     "The features of images: float32 (N, D).\n\n"
     "images: uint8 (N, H, W, 3), to be normalised, or float32 (N, C, H, W), already normalised, on\n"
     "the host or on the network's device. InputError where the output is more than one pixel."},
    {"forward", forward, METH_O,
     "forward($self, images, /)\n--\n\n"
     "The features and the logits of images: (h, z), float32 (N, D) and (N, M)."},
    {"maps", maps, METH_O,
     "maps($self, images, /)\n--\n\n"
     "The output tensor for images, whatever its size: float32 (N, D, H', W')."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef network_members[] = {
    {"arch", T_OBJECT, offsetof(network, arch), READONLY, "name of the architecture"},
    {"isa", T_OBJECT, offsetof(network, isa), READONLY, "instruction set asked for"},
    {"precision", T_OBJECT, offsetof(network, precision), READONLY, "float32, bf16x3 or bf16"},
    {"mean", T_OBJECT, offsetof(network, mean), READONLY, "mean of the normalisation, RGB in 0..1"},
    {"std", T_OBJECT, offsetof(network, std), READONLY, "standard deviation of the normalisation"},
    {"weight", T_OBJECT, offsetof(network, weight), READONLY, "W of the last layer, float32 (M, D), or None"},
    {"bias", T_OBJECT, offsetof(network, bias), READONLY, "b of the last layer, float32 (M,), or None"},
    {"linear", T_OBJECT, offsetof(network, linear), READONLY,
     "the Linear of W and b, which makes the logits, or None"},
    {"image_size", T_INT, offsetof(network, image_size), READONLY, "side of the images it was made for"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef network_getset[] = {
    {"kernels", get_kernels, NULL, "what really runs: \"reference\", \"avx512\", ...", NULL},
    {"algorithms", get_algorithms, NULL, "[(layer, how it is computed)], where there is more than one way",
     NULL},
    {"arena_bytes", get_arena_bytes, NULL, "bytes of inner results, for the last image size", NULL},
    {"weight_bytes", get_weight_bytes, NULL, "bytes of packed weights, without the head's", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot network_slots[] = {
    {Py_tp_doc, "Network(graph, precision=\"float32\", isa=None, device=\"cpu\")\n--\n\n"
                "A Graph made ready to run on one back end; the weights are copied.\n\n"
                "precision: \"float32\", \"bf16x3\" or \"bf16\"; isa: see isa_select; device: \"cpu\", "
                "\"cuda\" or \"cuda:N\"."},
    {Py_tp_new, network_new},
    {Py_tp_dealloc, network_dealloc},
    {Py_tp_methods, network_methods},
    {Py_tp_members, network_members},
    {Py_tp_getset, network_getset},
    {0, NULL},
};

static PyType_Spec network_spec = {
    .name = "dice._core.Network",
    .basicsize = sizeof(network),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = network_slots,
};

int dice_py_add_network(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &network_spec, NULL);
    const int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}
