/* From named weights to a Graph. See nn/build.h. */
#include "python/binding.h"

#include "base/memory.h"
#include "nn/build.h"

/* Weights by name, and the arrays that hold them. */
typedef struct named_arrays {
    dice_weights weights;
    PyArrayObject **arrays; /* (weights.count) */
} named_arrays;

/* *weight = one named array; *array holds its values. */
static int read_weight(PyObject *key, PyObject *value, dice_weight *weight, PyArrayObject **array)
{
    weight->name = PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
    if (weight->name == NULL || !PyArray_Check(value)) {
        PyErr_Clear();
        return dice_py_check(dice_fail(DICE_E_INPUT, "weights: want a dict of names to numpy arrays"));
    }
    weight->ndim = PyArray_NDIM((PyArrayObject *)value);
    if (weight->ndim > DICE_WEIGHT_DIMS) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "layer %s: got %d dimensions, want at most %d",
                                       weight->name, weight->ndim, DICE_WEIGHT_DIMS));
    }
    for (int i = 0; i < weight->ndim; i++) {
        const npy_intp size = PyArray_DIM((PyArrayObject *)value, i);
        if (size < 1 || size > INT32_MAX) {
            return dice_py_check(
                dice_fail(DICE_E_INPUT, "layer %s: axis %d has size %zd", weight->name, i, (Py_ssize_t)size));
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

static void release(named_arrays *named)
{
    for (size_t i = 0; i < named->weights.count; i++) {
        Py_DECREF(named->arrays[i]);
    }
    dice_free(named->weights.items);
    dice_free(named->arrays);
}

/* Reads a list of (name, array); release *named, on failure too. */
static int read_weights(PyObject *items, named_arrays *named)
{
    const size_t room = (size_t)PyList_GET_SIZE(items);
    void *memory;
    *named = (named_arrays){0};
    if (dice_py_check(dice_alloc_zero(room, sizeof *named->weights.items, &memory)) < 0) {
        return -1;
    }
    named->weights.items = memory;
    if (dice_py_check(dice_alloc_zero(room, sizeof *named->arrays, &memory)) < 0) {
        return -1;
    }
    named->arrays = memory;
    for (size_t i = 0; i < room; i++, named->weights.count++) {
        PyObject *item = PyList_GET_ITEM(items, (Py_ssize_t)i);
        if (read_weight(PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1), &named->weights.items[i],
                        &named->arrays[i])
            < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *build_graph(PyObject *module, PyObject *args)
{
    const char *arch;
    PyObject *dict, *mean, *std;
    named_arrays named = {0};
    dice_graph *graph = NULL;
    if (!PyArg_ParseTuple(args, "zO!OO", &arch, &PyDict_Type, &dict, &mean, &std)) {
        return NULL;
    }
    /* a list of our own, since reading an array may run code that changes the dict */
    PyObject *items = PyDict_Items(dict);
    if (items == NULL || read_weights(items, &named) < 0
        || dice_py_check(dice_build(arch, &named.weights, &graph)) < 0
        || dice_py_triple(mean, "normalize: mean", graph->mean) < 0
        || dice_py_triple(std, "normalize: std", graph->std) < 0
        || dice_py_check(dice_graph_check(graph)) < 0) { /* again, for the given normalisation */
        dice_graph_free(graph);
        graph = NULL;
    }
    release(&named);
    Py_XDECREF(items);
    return graph == NULL ? NULL : dice_py_graph_new(PyModule_GetState(module), graph);
}

static PyMethodDef methods[] = {
    {"build_graph", build_graph, METH_VARARGS,
     "build_graph($module, arch, weights, mean, std, /)\n--\n\n"
     "The Graph of a network whose builder the core has.\n\n"
     "arch: its name, or None to recognise it by names and shapes; weights: {name in the checkpoint:\n"
     "array}, computed with as float32, copied; mean, std: normalisation of uint8 images, three\n"
     "numbers in units of 0..1, or None for the architecture's own."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_build(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
