/* The process-wide settings: instruction set, threads, and the hook for allocation tests. */
#include "python/binding.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/peak.h"

static PyObject *isa_select(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z", &name)) {
        return NULL;
    }
    dice_isa isa;
    const dice_status status = dice_isa_select(name, &isa);
    return status == DICE_OK ? PyUnicode_FromString(dice_isa_name(isa)) : dice_py_raise(status);
}

static PyObject *isa_native(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyUnicode_FromString(dice_isa_name(dice_isa_native()));
}

static PyObject *threads_count(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(dice_threads_count());
}

static PyObject *threads_set(PyObject *Py_UNUSED(self), PyObject *args)
{
    int count;
    if (!PyArg_ParseTuple(args, "i", &count)) {
        return NULL;
    }
    const dice_status status = dice_threads_set(count);
    if (status != DICE_OK) {
        return dice_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyObject *memory_fail_at(PyObject *Py_UNUSED(self), PyObject *args)
{
    long n;
    if (!PyArg_ParseTuple(args, "l", &n)) {
        return NULL;
    }
    dice_memory_fail_at(n);
    Py_RETURN_NONE;
}

static PyObject *memory_live(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(dice_memory_live());
}

static PyObject *peak_gflops(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z", &name)) {
        return NULL;
    }
    dice_isa isa;
    double gflops = 0;
    dice_status status = dice_isa_select(name, &isa);
    if (status == DICE_OK) {
        Py_BEGIN_ALLOW_THREADS status = dice_cpu_peak(isa, &gflops);
        Py_END_ALLOW_THREADS
    }
    return status == DICE_OK ? PyFloat_FromDouble(gflops) : dice_py_raise(status);
}

static PyMethodDef methods[] = {
    {"isa_select", isa_select, METH_VARARGS,
     "isa_select(name=None) -> str: the instruction set to use; None means DICE_ISA, else the native one."},
    {"isa_native", isa_native, METH_NOARGS, "isa_native() -> str: the best instruction set of this machine."},
    {"threads_count", threads_count, METH_NOARGS, "threads_count() -> int: threads of the pool."},
    {"threads_set", threads_set, METH_VARARGS,
     "threads_set(n): threads of the pool; 0 is the default again."},
    {"peak_gflops", peak_gflops, METH_VARARGS,
     "peak_gflops(isa=None) -> float: the float32 peak of one core, measured, in GFLOP/s."},
    {"_memory_fail_at", memory_fail_at, METH_VARARGS,
     "Test hook: make the n-th allocation from now fail once."},
    {"_memory_live", memory_live, METH_NOARGS, "Test hook: blocks that the core holds."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_runtime(PyObject *module)
{
    int count;
    const dice_status status = dice_threads_default(&count);
    if (status != DICE_OK) { /* refused on import, since nothing later asks for the status */
        dice_py_raise(status);
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
