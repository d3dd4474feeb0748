/* The settings of the whole process: instruction set, threads, and the hooks of the allocation tests. */
#include "python/binding.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "base/quota.h"
#include "base/threads.h"
#include "cpu/peak.h"

static PyObject *isa_select(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z", &name)) {
        return NULL;
    }
    dice_isa isa;
    return dice_py_check(dice_isa_select(name, &isa)) < 0 ? NULL : PyUnicode_FromString(dice_isa_name(isa));
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
    return dice_py_result(dice_threads_set(count), Py_NewRef(Py_None));
}

static PyObject *quota_processors(PyObject *Py_UNUSED(self), PyObject *args)
{
    const char *root;
    if (!PyArg_ParseTuple(args, "s", &root)) {
        return NULL;
    }
    return PyLong_FromLong(dice_quota_processors(root));
}

static PyObject *memory_fail_at(PyObject *Py_UNUSED(self), PyObject *args)
{
    long n;
    if (!PyArg_ParseTuple(args, "l", &n)) {
        return NULL;
    }
    if (n < 0) {
        dice_py_check(dice_fail(DICE_E_INPUT, "n: got %ld, want 0 or more", n));
        return NULL;
    }
    return PyLong_FromLong(dice_memory_fail_at(n));
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
        Py_BEGIN_ALLOW_THREADS
        status = dice_cpu_peak(isa, &gflops);
        Py_END_ALLOW_THREADS
    }
    return dice_py_result(status, PyFloat_FromDouble(gflops));
}

static PyMethodDef methods[] = {
    {"isa_select", isa_select, METH_VARARGS,
     "isa_select($module, name=None, /)\n--\n\n"
     "The instruction set that `name` asks for: \"scalar\", \"avx2\", \"avx512\" or \"amx\"; None\n"
     "asks for that of DICE_ISA or, where this is not set, for the native one."},
    {"isa_native", isa_native, METH_NOARGS,
     "isa_native($module, /)\n--\n\n"
     "The best instruction set that this machine and this build have."},
    {"threads_count", threads_count, METH_NOARGS,
     "threads_count($module, /)\n--\n\n"
     "How many threads the core computes with, the caller's included."},
    {"threads_set", threads_set, METH_VARARGS,
     "threads_set($module, count, /)\n--\n\n"
     "Sets that number, 1 to 256; 0 returns to the default: DICE_THREADS, else the processors of the\n"
     "process, no more than its container's CPU quota."},
    {"peak_gflops", peak_gflops, METH_VARARGS,
     "peak_gflops($module, isa=None, /)\n--\n\n"
     "The float32 peak of one core, measured in a tenth of a second, in GFLOP/s; isa: see isa_select."},
    {"_quota_processors", quota_processors, METH_VARARGS,
     "_quota_processors($module, root, /)\n--\n\n"
     "For tests: the CPU quota, in processors, that the files under the folder `root` tell of; 0 for none."},
    {"_memory_fail_at", memory_fail_at, METH_VARARGS,
     "_memory_fail_at($module, n, /)\n--\n\n"
     "For tests: the n-th allocation of the core from now fails, once; 0 turns this off. How far away the\n"
     "failure asked for before still was, 0 where it has come."},
    {"_memory_live", memory_live, METH_NOARGS,
     "_memory_live($module, /)\n--\n\n"
     "For tests: how many blocks of memory the core holds."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_runtime(PyObject *module)
{
    int count;
    if (dice_py_check(dice_threads_default(&count)) < 0) {
        return -1; /* a bad DICE_THREADS is refused here, on import; dice_threads_count ignores it */
    }
    return PyModule_AddFunctions(module, methods);
}
