/* The type Linear: W and b, whole or masked, made ready by a back end. See linear_* in backend/backend.h. */
#include "python/binding.h"

#include <math.h>

typedef struct linear_object {
    PyObject_HEAD
    dice_py_place place;
    dice_linear *linear;
    Py_ssize_t classes, features;
} linear_object;

static void linear_dealloc(PyObject *self)
{
    linear_object *object = (linear_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (object->linear != NULL) {
        object->place.backend->linear_free(object->linear);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

/* *bias = b (M), on the host or a GPU. */
static int read_bias(PyObject *object, npy_intp classes, const dice_py_place *place, dice_py_view *bias)
{
    if (dice_py_floats(object, 1, "b", place, bias) < 0) {
        return -1;
    }
    if (bias->shape[0] != classes) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "b: got %zd values, W wants %zd",
                                       (Py_ssize_t)bias->shape[0], (Py_ssize_t)classes));
    }
    return 0;
}

/* keep (M, D), 1 where a weight stays. */
static PyArrayObject *read_keep(PyObject *object, const npy_intp *shape)
{
    PyArrayObject *keep = dice_py_array(object, NPY_UINT8, 2, "keep");
    for (int axis = 0; keep != NULL && axis < 2; axis++) {
        const Py_ssize_t got = PyArray_DIM(keep, axis), want = shape[axis];
        if (got != want) {
            Py_CLEAR(keep);
            dice_py_check(
                dice_fail(DICE_E_INPUT, "keep: got %zd along axis %d, W wants %zd", got, axis, want));
        }
    }
    return keep;
}

/* A Linear of arrays that lie where the back end of `place` can read them; keep may be NULL. */
static PyObject *make_linear(PyTypeObject *type, const float *weight, const float *bias, const uint8_t *keep,
                             npy_intp classes, npy_intp features, const dice_py_place *place)
{
    if (classes == 0 || features == 0 || classes > INT32_MAX) {
        dice_py_check(dice_fail(DICE_E_INPUT,
                                "W: got shape (%zd, %zd), want 1 to 2^31 - 1 classes and some features",
                                (Py_ssize_t)classes, (Py_ssize_t)features));
        return NULL;
    }
    linear_object *made = (linear_object *)type->tp_alloc(type, 0);
    if (made == NULL) {
        return NULL;
    }
    made->place = *place;
    made->place.backend = dice_backend_for_linear(place->backend, &place->options);
    made->classes = classes;
    made->features = features;
    dice_status status;
    Py_BEGIN_ALLOW_THREADS
    status = made->place.backend->linear_create(weight, bias, keep, (size_t)classes, (size_t)features,
                                                &place->options, &made->linear);
    Py_END_ALLOW_THREADS
    return dice_py_result(status, (PyObject *)made);
}

PyObject *dice_py_linear_new(const dice_py_module *state, const float *weight, const float *bias,
                             npy_intp classes, npy_intp features, const dice_py_place *place)
{
    return make_linear(state->linear, weight, bias, NULL, classes, features, place);
}

dice_status dice_py_linear_logits(PyObject *linear, const float *h, size_t n, float *logits)
{
    const linear_object *object = (const linear_object *)linear;
    const dice_linear_outputs outputs = {.logits = logits};
    return object->place.backend->linear_forward(object->linear, h, n, INFINITY, &outputs);
}

static PyObject *linear_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"W", "b", "keep", "device", "isa", "plain_products", NULL};
    PyObject *weight_object, *bias_object, *keep_object = Py_None, *made = NULL;
    const char *device = "cpu", *isa = NULL;
    int plain_products = 0;
    dice_py_place place;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|Oszp", names, &weight_object, &bias_object,
                                     &keep_object, &device, &isa, &plain_products)
        || dice_py_find_place(device, isa, "float32", &place) < 0) {
        return NULL;
    }
    place.options.plain_products = plain_products;
    PyArrayObject *keep = NULL;
    dice_py_view weight = {0}, bias = {0};
    if (dice_py_floats(weight_object, 2, "W", &place, &weight) == 0
        && read_bias(bias_object, weight.shape[0], &place, &bias) == 0
        && (keep_object == Py_None || (keep = read_keep(keep_object, weight.shape)) != NULL)) {
        made = make_linear(type, weight.data, bias.data, keep == NULL ? NULL : PyArray_DATA(keep),
                           weight.shape[0], weight.shape[1], &place);
    }
    dice_py_release(weight.owner);
    dice_py_release(bias.owner);
    Py_XDECREF(keep);
    return made;
}

/* What forward can return; the names and types are in this order. */
enum { ENERGY, MSP, MAXLOGIT, LABEL, LOGITS, OUTPUTS };
static const char *const output_names[OUTPUTS] = {"energy", "msp", "maxlogit", "label", "logits"};
static const int output_types[OUTPUTS] = {NPY_FLOAT64, NPY_FLOAT64, NPY_FLOAT64, NPY_INT32, NPY_FLOAT32};

/* *output = which of them `name` names. */
static int read_output(PyObject *name, int *output)
{
    for (*output = 0; *output < OUTPUTS; (*output)++) {
        if (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, output_names[*output]) == 0) {
            return 0;
        }
    }
    return dice_py_check(dice_fail(DICE_E_INPUT, "score: not one of energy, msp, maxlogit, label, logits"));
}

/* The arrays that the names from args[first] on ask for; data[output] = the memory of each, NULL for those
 * not asked for. */
static PyObject *make_outputs(PyObject *args, Py_ssize_t first, npy_intp n, npy_intp classes,
                              void *data[OUTPUTS])
{
    const Py_ssize_t count = PyTuple_GET_SIZE(args) - first;
    const npy_intp shape[2] = {n, classes};
    PyObject *arrays = PyTuple_New(count);
    if (arrays == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        int output;
        PyObject *array = NULL;
        if (read_output(PyTuple_GET_ITEM(args, i + first), &output) == 0) {
            if (data[output] != NULL) {
                dice_py_check(dice_fail(DICE_E_INPUT, "score: %s is named twice", output_names[output]));
            } else {
                array = PyArray_SimpleNew(output == LOGITS ? 2 : 1, shape, output_types[output]);
            }
        }
        if (array == NULL) {
            Py_DECREF(arrays);
            return NULL;
        }
        data[output] = dice_py_data(array);
        PyTuple_SET_ITEM(arrays, i, array);
    }
    return arrays;
}

static PyObject *linear_forward(PyObject *self, PyObject *args)
{
    const linear_object *object = (linear_object *)self;
    if (PyTuple_GET_SIZE(args) < 3) {
        PyErr_SetString(PyExc_TypeError, "forward(h, clip, name, ...) wants at least three arguments");
        return NULL;
    }
    const double clip = PyFloat_AsDouble(PyTuple_GET_ITEM(args, 1));
    if (clip == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (isnan(clip) || clip == -INFINITY) {
        dice_py_check(dice_fail(DICE_E_INPUT, "clip: got %g, want a number above minus infinity", clip));
        return NULL;
    }
    dice_py_view h = {0};
    if (dice_py_floats(PyTuple_GET_ITEM(args, 0), 2, "h", &object->place, &h) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    void *data[OUTPUTS] = {NULL};
    if (h.shape[1] != object->features) {
        dice_py_check(dice_fail(DICE_E_INPUT, "h: got %zd features, W wants %zd", (Py_ssize_t)h.shape[1],
                                object->features));
    } else if ((result = make_outputs(args, 2, h.shape[0], object->classes, data)) != NULL) {
        const dice_linear_outputs outputs = {.energy = data[ENERGY],
                                             .msp = data[MSP],
                                             .maxlogit = data[MAXLOGIT],
                                             .label = data[LABEL],
                                             .logits = data[LOGITS]};
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = object->place.backend->linear_forward(object->linear, h.data, (size_t)h.shape[0],
                                                       (float)clip, &outputs);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
    dice_py_release(h.owner);
    return result;
}

static PyObject *linear_reduce(PyObject *self, PyObject *args)
{
    const linear_object *object = (linear_object *)self;
    const dice_backend *backend = object->place.backend;
    if (PyTuple_GET_SIZE(args) < 2) {
        PyErr_SetString(PyExc_TypeError, "reduce(z, name, ...) wants at least two arguments");
        return NULL;
    }
    if (backend->linear_reduce == NULL) {
        dice_py_check(dice_fail(DICE_E_INPUT, "reduce: not offered on %s", backend->name));
        return NULL;
    }
    dice_py_view z = {0};
    if (dice_py_floats(PyTuple_GET_ITEM(args, 0), 2, "z", &object->place, &z) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    void *data[OUTPUTS] = {NULL};
    if (z.shape[1] != object->classes) {
        dice_py_check(dice_fail(DICE_E_INPUT, "z: got %zd classes, W has %zd", (Py_ssize_t)z.shape[1],
                                object->classes));
    } else if ((result = make_outputs(args, 1, z.shape[0], object->classes, data)) != NULL) {
        const dice_linear_outputs outputs = {
            .energy = data[ENERGY], .msp = data[MSP], .maxlogit = data[MAXLOGIT], .label = data[LABEL]};
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = data[LOGITS] != NULL
                   ? dice_fail(DICE_E_INPUT, "score: logits are what reduce is given")
                   : backend->linear_reduce(object->linear, z.data, (size_t)z.shape[0], &outputs);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
    }
    dice_py_release(z.owner);
    return result;
}

static PyObject *get_reduces(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((linear_object *)self)->place.backend->linear_reduce != NULL);
}

static PyObject *linear_info(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    const linear_object *object = (linear_object *)self;
    size_t bytes;
    const char *kind = object->place.backend->linear_info(object->linear, &bytes);
    return Py_BuildValue("(sn)", kind, (Py_ssize_t)bytes);
}

static PyMethodDef linear_methods[] = {
    {"forward", linear_forward, METH_VARARGS,
     "forward($self, h, clip, /, *names)\n--\n\n"
     "What the layer makes of min(h, clip): a tuple of arrays, one for each name.\n\n"
     "h: float32 (N, D), on the host or on the layer's device; clip: a number, inf = no clip. names:\n"
     "\"energy\", \"msp\" and \"maxlogit\" are float64 (N,), \"label\" is int32 (N,), \"logits\" is\n"
     "float32 (N, M). An image's bits depend neither on the others nor on the number of threads."},
    {"reduce", linear_reduce, METH_VARARGS,
     "reduce($self, z, /, *names)\n--\n\n"
     "The scores of logits that are there already: a tuple of arrays, one for each name.\n\n"
     "z: float32 (N, M), what forward gives as \"logits\"; names as for forward, but for \"logits\".\n"
     "The bits are those that forward gives for them. InputError where the back end does not offer\n"
     "it; see reduces."},
    {"info", linear_info, METH_NOARGS,
     "info($self, /)\n--\n\n"
     "How the weights are stored: (\"dense\", \"sparse\" or \"both\", bytes)."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef linear_getset[] = {
    {"reduces", get_reduces, NULL, "whether the back end offers reduce", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot linear_slots[] = {
    {Py_tp_doc,
     "Linear(W, b, keep=None, device=\"cpu\", isa=None, plain_products=False)\n--\n\n"
     "W h + b and the scores of it, with W packed for one back end; whole, or what a mask leaves of\n"
     "it.\n\n"
     "W: float32 (M, D), b: float32 (M,), on the host or on the device, copied; keep: uint8 (M, D), 1\n"
     "where a weight stays, or None for all; isa: see isa_select. plain_products: a GPU may take the\n"
     "products of cuBLAS, whose last bits depend on N."},
    {Py_tp_new, linear_new},
    {Py_tp_dealloc, linear_dealloc},
    {Py_tp_methods, linear_methods},
    {Py_tp_getset, linear_getset},
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
    dice_py_module *state = PyModule_GetState(module);
    state->linear = (PyTypeObject *)PyType_FromModuleAndSpec(module, &linear_spec, NULL);
    return state->linear == NULL ? -1 : PyModule_AddType(module, state->linear);
}
