/* Any list of ops as a graph: the face that the tests of the back ends use. */
#include "python/binding.h"

#include <string.h>

#include "base/memory.h"
#include "nn/plan.h"

/* dict[key] as an int; `absent` where there is none. */
static int get_int(PyObject *dict, const char *key, int absent)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    return value == NULL ? absent : (int)PyLong_AsLong(value);
}

/* *out = dict[key] as `count` floats of the graph; NULL where there is none. -1 with an exception set. */
static int get_floats(PyObject *dict, const char *key, size_t count, dice_graph *graph, const float **out)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    *out = NULL;
    if (value == NULL || value == Py_None) {
        return 0;
    }
    PyArrayObject *array = PyArray_Check(value)
                             ? dice_py_array(value, NPY_FLOAT32, PyArray_NDIM((PyArrayObject *)value), key)
                             : NULL;
    if (array == NULL) {
        return -1;
    }
    float *floats;
    dice_status status = DICE_OK;
    if ((size_t)PyArray_SIZE(array) != count) {
        status = dice_fail(DICE_E_INPUT, "%s: got %zd values, want %zu", key, PyArray_SIZE(array), count);
    } else {
        status = dice_graph_floats(graph, count, &floats);
    }
    if (status == DICE_OK) {
        memcpy(floats, PyArray_DATA(array), count * sizeof *floats);
        *out = floats;
    } else {
        dice_py_raise(status);
    }
    Py_DECREF(array);
    return status == DICE_OK ? 0 : -1;
}

static int read_kind(PyObject *dict, dice_op_kind *kind)
{
    PyObject *value = PyDict_GetItemString(dict, "kind");
    for (int k = 0; value != NULL && PyUnicode_Check(value) && k < DICE_OP_KINDS; k++) {
        if (PyUnicode_CompareWithASCIIString(value, dice_op_names[k]) == 0) {
            *kind = (dice_op_kind)k;
            return 0;
        }
    }
    dice_py_raise(dice_fail(DICE_E_INPUT, "kind: not the name of an op"));
    return -1;
}

static int push_op(PyObject *dict, int index, dice_graph *graph)
{
    dice_op op = {.x = get_int(dict, "x", DICE_NONE),
                  .y = get_int(dict, "y", DICE_NONE),
                  .residual = get_int(dict, "residual", DICE_NONE),
                  .kernel = get_int(dict, "kernel", 1),
                  .stride = get_int(dict, "stride", 1),
                  .pad = get_int(dict, "pad", 0),
                  .groups = get_int(dict, "groups", 1),
                  .eps = 1e-5f,
                  .relu = get_int(dict, "relu", 0),
                  .zero_padded = get_int(dict, "zero_padded", 0)};
    snprintf(op.name, sizeof op.name, "%d", index);
    if (PyErr_Occurred() || read_kind(dict, &op.kind) < 0) {
        return -1;
    }
    if (op.x < 0 || op.x >= graph->n_tensors || op.y < 0 || op.y >= graph->n_tensors || op.kernel < 1
        || op.kernel > 64) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "op %d: x, y or kernel out of range", index));
        return -1;
    }
    const size_t cx = (size_t)graph->tensors[op.x].channels, cy = (size_t)graph->tensors[op.y].channels;
    if (get_floats(dict, "weight", dice_op_weights(graph, &op), graph, &op.weight) < 0
        || get_floats(dict, "bias", cy, graph, &op.bias) < 0
        || get_floats(dict, "pre_scale", cx, graph, &op.pre_scale) < 0
        || get_floats(dict, "pre_shift", cx, graph, &op.pre_shift) < 0) {
        return -1;
    }
    const dice_status status = dice_graph_push(graph, &op);
    if (status != DICE_OK) {
        dice_py_raise(status);
        return -1;
    }
    return 0;
}

static int push_tensor(PyObject *item, dice_graph *graph)
{
    int channels, parent, offset;
    int32_t id;
    if (!PyArg_ParseTuple(item, "iii", &channels, &parent, &offset)) {
        return -1;
    }
    const dice_status status = parent == DICE_NONE ? dice_graph_tensor(graph, channels, &id)
                                                   : dice_graph_slice(graph, parent, offset, channels, &id);
    if (status != DICE_OK) {
        dice_py_raise(status);
        return -1;
    }
    return 0;
}

static size_t no_bytes(int32_t channels, int32_t height, int32_t width)
{
    (void)channels, (void)height, (void)width;
    return 0;
}

/* The graph's output for x (N, C, H, W); NULL with an exception set. */
static PyObject *run(const dice_graph *graph, PyArrayObject *x, const dice_backend *backend,
                     const dice_options *options)
{
    dice_plan plan = {0};
    dice_net *net = NULL;
    PyObject *y = NULL;
    const dice_images images = {.floats = PyArray_DATA(x),
                                .n = (size_t)PyArray_DIM(x, 0),
                                .height = (int32_t)PyArray_DIM(x, 2),
                                .width = (int32_t)PyArray_DIM(x, 3)};
    dice_status status = dice_graph_check(graph);
    if (status == DICE_OK && PyArray_DIM(x, 1) != graph->tensors[graph->input].channels) {
        status = dice_fail(DICE_E_INPUT, "x: got %zd channels, want %d", PyArray_DIM(x, 1),
                           graph->tensors[graph->input].channels);
    }
    if (status == DICE_OK) {
        status = dice_plan_make(graph, images.height, images.width, no_bytes, &plan);
    }
    if (status == DICE_OK) {
        const npy_intp shape[4] = {PyArray_DIM(x, 0), graph->tensors[graph->output].channels,
                                   plan.height[graph->output], plan.width[graph->output]};
        status = backend->net_create(graph, options, &net);
        y = status == DICE_OK ? PyArray_SimpleNew(4, shape, NPY_FLOAT32) : NULL;
    }
    if (y != NULL) {
        Py_BEGIN_ALLOW_THREADS status = backend->net_forward(net, &images, PyArray_DATA((PyArrayObject *)y));
        Py_END_ALLOW_THREADS
    }
    if (status != DICE_OK) {
        Py_CLEAR(y);
        dice_py_raise(status);
    }
    if (net != NULL) {
        backend->net_free(net);
    }
    dice_plan_free(&plan);
    return y;
}

static PyObject *run_ops(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *tensors, *ops, *object, *y = NULL;
    int output, winograd = 0;
    const char *isa, *precision, *device = "cpu";
    if (!PyArg_ParseTuple(args, "O!O!Oizs|ps", &PyList_Type, &tensors, &PyList_Type, &ops, &object, &output,
                          &isa, &precision, &winograd, &device)) {
        return NULL;
    }
    dice_options options = {0};
    const dice_backend *backend = NULL;
    dice_graph *graph = NULL;
    dice_status status = dice_py_options(isa, precision, &options);
    if (status == DICE_OK) {
        status = dice_backend_find(device, &options, &backend);
    }
    if (status == DICE_OK) {
        status = dice_graph_new("ops", &graph);
    }
    if (status != DICE_OK) {
        return dice_py_raise(status);
    }
    PyArrayObject *x = dice_py_array(object, NPY_FLOAT32, 4, "x");
    if (x == NULL) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); i++) {
        if (push_tensor(PyList_GET_ITEM(tensors, i), graph) < 0) {
            goto done;
        }
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(ops); i++) {
        if (push_op(PyList_GET_ITEM(ops, i), (int)i, graph) < 0) {
            goto done;
        }
    }
    graph->input = 0;
    graph->output = output;
    graph->winograd = winograd;
    y = run(graph, x, backend, &options);
done:
    Py_XDECREF(x);
    dice_graph_free(graph);
    return y;
}

static PyMethodDef methods[] = {
    {"run_ops", run_ops, METH_VARARGS,
     "run_ops(tensors, ops, x, output, isa, precision, winograd=False, device=\"cpu\") -> float32 (N, C, H, "
     "W)\n\n"
     "Test face. tensors: [(channels, parent or -1, offset)], the first is the input; ops: dicts with the "
     "fields of\n"
     "dice_op in csrc/nn/graph.h and kind \"conv\", \"maxpool\", \"avgpool\", \"global_mean\" or "
     "\"groupnorm\";\n"
     "x: float32 (N, C, H, W); output: index of the tensor to return; winograd allows F(2 x 2, 3 x 3)."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_run_ops(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
