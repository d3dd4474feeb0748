/* The extension module dice._core: every file of this folder adds its types and functions. */
#define DICE_IMPORTS_NUMPY
#include "python/binding.h"

static int execute(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    int (*const add[])(PyObject *) = {
        dice_py_add_runtime, dice_py_add_build_info, dice_py_add_device,  dice_py_add_linalg,
        dice_py_add_graph,   dice_py_add_build,      dice_py_add_network, dice_py_add_linear,
        dice_py_add_fit,     dice_py_add_gaussian,   dice_py_add_scores,  dice_py_add_bank,
        dice_py_add_metrics,
    };
    for (size_t i = 0; i < sizeof add / sizeof *add; i++) {
        if (add[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    const dice_py_module *state = PyModule_GetState(module);
    Py_VISIT(state->graph);
    Py_VISIT(state->linear);
    return 0;
}

static int clear(PyObject *module)
{
    dice_py_module *state = PyModule_GetState(module);
    Py_CLEAR(state->graph);
    Py_CLEAR(state->linear);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dice._core",
    .m_doc = "The C core of dice. Private: use the names that the package dice offers.",
    .m_size = sizeof(dice_py_module),
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
