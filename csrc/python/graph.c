/* The type Graph: a network as data, made from lists of tensors and ops. See nn/graph.h.
 *
 * Every mistake in what Python gives is refused by name: a key that is not known or not of the op's kind, a
 * value of another type or out of range, an array of another shape. Nothing can change a Graph that was
 * made. */
#include "python/binding.h"

#include <math.h>
#include <string.h>

enum { MOST_ITEMS = 1 << 16 }; /* of a list; the planner compares each tensor with every other */
enum { WHERE = 32 };           /* bytes of "op 65535" */

typedef struct graph_object {
    PyObject_HEAD
    dice_graph *graph;
} graph_object;

static void graph_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    dice_graph_free(((graph_object *)self)->graph);
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *dice_py_graph_new(const dice_py_module *state, dice_graph *graph)
{
    PyObject *made = state->graph->tp_alloc(state->graph, 0);
    if (made == NULL) {
        dice_graph_free(graph);
        return NULL;
    }
    ((graph_object *)made)->graph = graph;
    return made;
}

int dice_py_graph(const dice_py_module *state, PyObject *object, const dice_graph **out)
{
    if (!Py_IS_TYPE(object, state->graph)) {
        PyErr_Format(PyExc_TypeError, "graph: got %s, want a Graph", Py_TYPE(object)->tp_name);
        return -1;
    }
    *out = ((graph_object *)object)->graph;
    return 0;
}

/* Refuses the value of `key` in the op or tensor `where`. */
static int refuse(const char *where, const char *key, const char *want, PyObject *value)
{
    return dice_py_check(
        dice_fail(DICE_E_INPUT, "%s: %s: got %s, want %s", where, key, Py_TYPE(value)->tp_name, want));
}

static int read_int(const char *where, const char *key, PyObject *value, int32_t *out)
{
    PyObject *integer = PyBool_Check(value) || !PyIndex_Check(value) ? NULL : PyNumber_Index(value);
    if (integer == NULL) {
        PyErr_Clear();
        return refuse(where, key, "an integer", value);
    }
    int overflow;
    const long long number = PyLong_AsLongLongAndOverflow(integer, &overflow);
    Py_DECREF(integer);
    if (overflow != 0 || number < INT32_MIN || number > INT32_MAX) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "%s: %s: the integer is out of range, want 32 bits", where, key));
    }
    *out = (int32_t)number;
    return 0;
}

static int read_flag(const char *where, const char *key, PyObject *value, int *out)
{
    if (!PyBool_Check(value)) {
        return refuse(where, key, "True or False", value);
    }
    *out = value == Py_True;
    return 0;
}

static int read_real(const char *where, const char *key, PyObject *value, float *out)
{
    const double number = PyBool_Check(value) ? -1 : PyFloat_AsDouble(value);
    if (PyBool_Check(value) || (number == -1 && PyErr_Occurred())) {
        PyErr_Clear();
        return refuse(where, key, "a number", value);
    }
    *out = (float)number;
    if (!isfinite(*out)) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "%s: %s: got %g, want a finite float32", where, key, number));
    }
    return 0;
}

/* text (size) = the string `value` with the zero at its end. */
static int read_text(const char *where, const char *key, PyObject *value, char *text, size_t size)
{
    Py_ssize_t length;
    const char *utf8 = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &length) : NULL;
    if (utf8 == NULL) {
        PyErr_Clear();
        return refuse(where, key, "a string", value);
    }
    if ((size_t)length >= size || strlen(utf8) != (size_t)length) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "%s: %s: want at most %zu bytes, none of them zero",
                                       where, key, size - 1));
    }
    memcpy(text, utf8, (size_t)length + 1);
    return 0;
}

/* *out = the array `value`, of this very shape, as floats of the graph. */
static int read_floats(const char *where, const char *key, PyObject *value, int ndim, const int32_t *shape,
                       dice_graph *graph, const float **out)
{
    char argument[WHERE + 32];
    snprintf(argument, sizeof argument, "%s: %s", where, key);
    if (!PyArray_Check(value)) {
        return refuse(where, key, "a numpy array", value);
    }
    PyArrayObject *array = dice_py_array(value, NPY_FLOAT32, ndim, argument);
    if (array == NULL) {
        return -1;
    }
    dice_status status = DICE_OK;
    for (int axis = 0; axis < ndim && status == DICE_OK; axis++) {
        if (PyArray_DIM(array, axis) != shape[axis]) {
            status = dice_fail(DICE_E_INPUT, "%s: got %zd along axis %d, want %d", argument,
                               (Py_ssize_t)PyArray_DIM(array, axis), axis, shape[axis]);
        }
    }
    float *floats = NULL;
    if (status == DICE_OK) {
        status = dice_graph_floats(graph, (size_t)PyArray_SIZE(array), &floats);
    }
    if (status == DICE_OK) {
        memcpy(floats, PyArray_DATA(array), (size_t)PyArray_NBYTES(array));
        *out = floats;
    }
    Py_DECREF(array);
    return dice_py_check(status);
}

static int is_tensor_key(PyObject *key)
{
    return PyUnicode_CompareWithASCIIString(key, "channels") == 0
        || PyUnicode_CompareWithASCIIString(key, "parent") == 0
        || PyUnicode_CompareWithASCIIString(key, "offset") == 0;
}

static int is_op_key(PyObject *key)
{
    int known = PyUnicode_CompareWithASCIIString(key, "kind") == 0
             || PyUnicode_CompareWithASCIIString(key, "name") == 0;
    for (const dice_op_field *field = dice_op_fields; field->name != NULL; field++) {
        known |= PyUnicode_CompareWithASCIIString(key, field->name) == 0;
    }
    return known;
}

/* A copy of the dict `item`, which no code but ours can change while it is read, with no other key than
 * `is_known` knows. */
static PyObject *read_dict(const char *where, PyObject *item, int (*is_known)(PyObject *key))
{
    if (!PyDict_Check(item)) {
        dice_py_check(dice_fail(DICE_E_INPUT, "%s: got %s, want a dict", where, Py_TYPE(item)->tp_name));
        return NULL;
    }
    PyObject *copy = PyDict_Copy(item), *key, *value;
    Py_ssize_t position = 0;
    while (copy != NULL && PyDict_Next(copy, &position, &key, &value)) {
        if (!PyUnicode_Check(key) || !is_known(key)) {
            PyObject *text = PyUnicode_Check(key) ? PyObject_ASCII(key) : NULL;
            dice_py_check(dice_fail(DICE_E_INPUT, "%s: the key %s is not known", where,
                                    text == NULL ? Py_TYPE(key)->tp_name : PyUnicode_AsUTF8(text)));
            Py_XDECREF(text);
            Py_CLEAR(copy);
        }
    }
    return copy;
}

static int push_tensor(const char *where, PyObject *dict, dice_graph *graph)
{
    int32_t channels, parent = DICE_NONE, offset = 0, id;
    PyObject *channels_item = dice_py_item(dict, "channels"), *parent_item = dice_py_item(dict, "parent"),
             *offset_item = dice_py_item(dict, "offset");
    if (channels_item == NULL) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "%s: channels are missing", where));
    }
    if (read_int(where, "channels", channels_item, &channels) < 0
        || (parent_item != NULL && read_int(where, "parent", parent_item, &parent) < 0)
        || (offset_item != NULL && read_int(where, "offset", offset_item, &offset) < 0)) {
        return -1;
    }
    if (parent_item == NULL) {
        return dice_py_check(offset_item == NULL
                                 ? dice_graph_tensor(graph, channels, &id)
                                 : dice_fail(DICE_E_INPUT, "%s: an offset without a parent", where));
    }
    if (parent < 0) { /* DICE_NONE would stand for a tensor of its own */
        return dice_py_check(dice_fail(DICE_E_INPUT, "%s: parent: got %d, want 0 or more", where, parent));
    }
    return dice_py_check(dice_graph_slice(graph, parent, offset, channels, &id));
}

static int read_kind(const char *where, PyObject *dict, dice_op_kind *kind)
{
    PyObject *value = dice_py_item(dict, "kind");
    for (int k = 0; value != NULL && PyUnicode_Check(value) && k < DICE_OP_KINDS; k++) {
        if (PyUnicode_CompareWithASCIIString(value, dice_op_names[k]) == 0) {
            *kind = (dice_op_kind)k;
            return 0;
        }
    }
    return dice_py_check(dice_fail(DICE_E_INPUT, "%s: kind: not the name of an op", where));
}

/* The field of *op = `value`. */
static int read_field(const char *where, const dice_op_field *field, PyObject *value, dice_graph *graph,
                      dice_op *op)
{
    char *at = (char *)op + field->offset;
    if (!(field->kinds >> op->kind & 1)) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "%s: a %s has no %s", where, dice_op_names[op->kind], field->name));
    }
    switch (field->type) {
    case DICE_FIELD_TENSOR: {
        int32_t id;
        if (read_int(where, field->name, value, &id) < 0) {
            return -1;
        }
        if (id < 0 || id >= graph->n_tensors) {
            return dice_py_check(dice_fail(DICE_E_INPUT, "%s: %s: got tensor %d of %d", where, field->name,
                                           id, graph->n_tensors));
        }
        memcpy(at, &id, sizeof id);
        return 0;
    }
    case DICE_FIELD_INT:
        return read_int(where, field->name, value, (int32_t *)(void *)at);
    case DICE_FIELD_FLAG:
        return read_flag(where, field->name, value, (int *)(void *)at);
    case DICE_FIELD_REAL:
        return read_real(where, field->name, value, (float *)(void *)at);
    case DICE_FIELD_FLOATS: {
        int32_t shape[4];
        const int ndim = dice_op_shape(graph, op, field, shape);
        return read_floats(where, field->name, value, ndim, shape, graph, (const float **)(void *)at);
    }
    }
    return 0;
}

static int push_op(const char *where, PyObject *dict, dice_graph *graph)
{
    dice_op op = {.x = DICE_NONE,
                  .y = DICE_NONE,
                  .residual = DICE_NONE,
                  .kernel = 1,
                  .stride = 1,
                  .groups = 1,
                  .eps = 1e-5f};
    PyObject *name = dice_py_item(dict, "name");
    snprintf(op.name, sizeof op.name, "%s", where);
    if (read_kind(where, dict, &op.kind) < 0
        || (name != NULL && read_text(where, "name", name, op.name, sizeof op.name) < 0)) {
        return -1;
    }
    for (const dice_op_field *field = dice_op_fields; field->name != NULL; field++) {
        PyObject *value = dice_py_item(dict, field->name);
        if (value == NULL && field->required) {
            return dice_py_check(dice_fail(DICE_E_INPUT, "%s: %s is missing", where, field->name));
        }
        if (value != NULL && read_field(where, field, value, graph, &op) < 0) {
            return -1;
        }
    }
    return dice_py_check(dice_graph_push(graph, &op));
}

typedef int (*push_item)(const char *where, PyObject *dict, dice_graph *graph);

/* Pushes each dict of a list or tuple; `what` is the word for one of them. */
static int push_all(const char *what, PyObject *sequence, int (*is_known)(PyObject *key), push_item push,
                    dice_graph *graph)
{
    if (!PyList_Check(sequence) && !PyTuple_Check(sequence)) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "%ss: got %s, want a list of dicts", what, Py_TYPE(sequence)->tp_name));
    }
    PyObject *items = PySequence_Tuple(sequence); /* reading a value may run code that changes a list */
    if (items == NULL) {
        return -1;
    }
    int failed = 0;
    if (PyTuple_GET_SIZE(items) > MOST_ITEMS) {
        failed = dice_py_check(dice_fail(DICE_E_INPUT, "%ss: got %zd, want at most %d", what,
                                         PyTuple_GET_SIZE(items), MOST_ITEMS));
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items) && failed == 0; i++) {
        char where[WHERE];
        snprintf(where, sizeof where, "%s %d", what, (int)i);
        PyObject *dict = read_dict(where, PyTuple_GET_ITEM(items, i), is_known);
        failed = dict == NULL ? -1 : push(where, dict, graph);
        Py_XDECREF(dict);
    }
    Py_DECREF(items);
    return failed;
}

/* The last layer (W, b) for the features of the output, as (M, D) and (M). */
static int read_head(PyObject *head, dice_graph *graph)
{
    if (!PyTuple_Check(head) || PyTuple_GET_SIZE(head) != 2) {
        return refuse("graph", "head", "a tuple (W, b) or None", head);
    }
    PyObject *weight = PyTuple_GET_ITEM(head, 0), *bias = PyTuple_GET_ITEM(head, 1);
    if (graph->output < 0 || graph->output >= graph->n_tensors) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "graph: output: got tensor %d of %d", graph->output, graph->n_tensors));
    }
    if (!PyArray_Check(weight) || PyArray_NDIM((PyArrayObject *)weight) != 2
        || PyArray_DIM((PyArrayObject *)weight, 0) < 1
        || PyArray_DIM((PyArrayObject *)weight, 0) > INT32_MAX) {
        return dice_py_check(
            dice_fail(DICE_E_INPUT, "graph: head: W: want a numpy array (M, D) with 1 to 2^31 - 1 rows"));
    }
    const int32_t shape[2] = {(int32_t)PyArray_DIM((PyArrayObject *)weight, 0),
                              graph->tensors[graph->output].channels};
    if (read_floats("head", "W", weight, 2, shape, graph, &graph->head_weight) < 0
        || read_floats("head", "b", bias, 1, shape, graph, &graph->head_bias) < 0) {
        return -1;
    }
    graph->classes = shape[0];
    return 0;
}

int dice_py_triple(PyObject *object, const char *argument, float values[3])
{
    if (object == Py_None) {
        return 0;
    }
    PyArrayObject *array = dice_py_array(object, NPY_FLOAT32, 1, argument);
    if (array == NULL) {
        return -1;
    }
    dice_status status = DICE_OK;
    if (PyArray_SIZE(array) == 3) {
        memcpy(values, PyArray_DATA(array), 3 * sizeof *values);
    } else {
        status = dice_fail(DICE_E_INPUT, "%s: got %zd values, want 3", argument,
                           (Py_ssize_t)PyArray_SIZE(array));
    }
    Py_DECREF(array);
    return dice_py_check(status);
}

static int check_size(int32_t image_size)
{
    return image_size >= 0 ? 0
                           : dice_py_check(dice_fail(
                                 DICE_E_INPUT, "graph: image_size: got %d, want 0 or more", image_size));
}

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"tensors", "ops",        "input",    "output", "head", "mean",
                            "std",     "image_size", "winograd", "arch",   NULL};
    PyObject *tensors, *ops, *input, *output, *head = Py_None, *mean = Py_None, *std = Py_None,
                                              *image_size = NULL, *winograd = NULL, *arch = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOO|$OOOOOO", names, &tensors, &ops, &input, &output,
                                     &head, &mean, &std, &image_size, &winograd, &arch)) {
        return NULL;
    }
    dice_graph *graph;
    if (dice_py_check(dice_graph_new("graph", &graph)) < 0) {
        return NULL;
    }
    if ((arch != NULL && read_text("graph", "arch", arch, graph->arch, sizeof graph->arch) < 0)
        || push_all("tensor", tensors, is_tensor_key, push_tensor, graph) < 0
        || push_all("op", ops, is_op_key, push_op, graph) < 0
        || read_int("graph", "input", input, &graph->input) < 0
        || read_int("graph", "output", output, &graph->output) < 0
        || (head != Py_None && read_head(head, graph) < 0) || dice_py_triple(mean, "mean", graph->mean) < 0
        || dice_py_triple(std, "std", graph->std) < 0
        || (image_size != NULL && read_int("graph", "image_size", image_size, &graph->image_size) < 0)
        || check_size(graph->image_size) < 0
        || (winograd != NULL && read_flag("graph", "winograd", winograd, &graph->winograd) < 0)
        || dice_py_check(dice_graph_check(graph)) < 0) {
        dice_graph_free(graph);
        return NULL;
    }
    return dice_py_graph_new(PyType_GetModuleState(type), graph);
}

static PyType_Slot graph_slots[] = {
    {Py_tp_doc,
     "Graph(tensors, ops, input, output, *, head=None, mean=None, std=None, image_size=0, winograd=False,\n"
     "      arch=\"graph\")\n--\n\n"
     "A network as data, which Network makes ready to run; arrays are copied, and nothing can change it.\n\n"
     "tensors: a list of dicts {channels} or, for a slice of another tensor's channels, {channels, parent,\n"
     "offset}: parent is the other's index in the list, offset its first channel in the slice.\n"
     "ops: a list of dicts, in the order in which they run: `kind`, the name of an op; `x` and `y`, indices\n"
     "of the tensors that it reads and writes; `name`, for messages; and what csrc/nn/graph.h says that its\n"
     "kind reads of `residual`, `kernel`, `stride`, `pad`, `groups` (integers), `eps` (a number), `relu`,\n"
     "`zero_padded` (True or False), `weight`, `bias`, `pre_scale`, `pre_shift` (float32 arrays). Defaults:\n"
     "kernel, stride and groups 1, pad 0, eps 1e-5, False, None.\n"
     "input, output: indices of the tensors that hold the image and the features.\n"
     "head: the last layer (W, b), float32 (M, D) and (M,). mean, std: normalisation of uint8 images, three\n"
     "numbers in units of 0..1. image_size: side of the images that the network was made for. winograd:\n"
     "whether 3 x 3 convolutions may use Winograd's algorithm, whose error is larger.\n"
     "InputError names the op or tensor and the key that is wrong."},
    {Py_tp_new, graph_new},
    {Py_tp_dealloc, graph_dealloc},
    {0, NULL},
};

static PyType_Spec graph_spec = {
    .name = "dice._core.Graph",
    .basicsize = sizeof(graph_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = graph_slots,
};

int dice_py_add_graph(PyObject *module)
{
    dice_py_module *state = PyModule_GetState(module);
    state->graph = (PyTypeObject *)PyType_FromModuleAndSpec(module, &graph_spec, NULL);
    return state->graph == NULL ? -1 : PyModule_AddType(module, state->graph);
}
