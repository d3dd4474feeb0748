/* How the extension was built: the build passes the facts to this file alone. */
#include "python/binding.h"

#include "linalg/blas.h"

static PyObject *build_info(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("{ssssssssssssss}", "compiler", DICE_BUILD_COMPILER, "isa", DICE_BUILD_ISA,
                         "isa_left_out", DICE_BUILD_ISA_LEFT_OUT, "openblas", DICE_BUILD_OPENBLAS,
                         "openblas_config", dice_blas_config(), "cuda", DICE_BUILD_CUDA, "sanitize",
                         DICE_BUILD_SANITIZE);
}

static PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info($module, /)\n--\n\n"
     "How the extension was built, as a dict of strings: compiler, instruction sets built and left out,\n"
     "OpenBLAS, what CUDA was built with or why not, sanitizers."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_build_info(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
