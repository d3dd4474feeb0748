/* From Python arrays to what the core takes. See binding.h. */
#include "python/binding.h"

#include <stdint.h>
#include <string.h>

/* By the exponent's bits, which a compiler can test several at a time. */
static int all_finite(PyArrayObject *array)
{
    const npy_intp n = PyArray_SIZE(array);
    int bad = 0;
    if (PyArray_TYPE(array) == NPY_FLOAT32) {
        const float *x = PyArray_DATA(array);
        for (npy_intp i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, sizeof bits);
            bad |= (bits & 0x7f800000) == 0x7f800000;
        }
    } else if (PyArray_TYPE(array) == NPY_FLOAT64) {
        const double *x = PyArray_DATA(array);
        for (npy_intp i = 0; i < n; i++) {
            uint64_t bits;
            memcpy(&bits, x + i, sizeof bits);
            bad |= (uint32_t)(bits >> 52 & 0x7ff) == 0x7ff;
        }
    }
    return !bad;
}

PyArrayObject *dice_py_array_any(PyObject *object, int typenum, int ndim, const char *argument)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (any == NULL) {
        PyErr_Clear();
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: cannot be read as an array", argument));
        return NULL;
    }
    if (PyArray_NDIM(any) != ndim) {
        dice_py_raise(
            dice_fail(DICE_E_INPUT, "%s: got %d dimensions, want %d", argument, PyArray_NDIM(any), ndim));
        Py_DECREF(any);
        return NULL;
    }
    const int wants_float = PyTypeNum_ISFLOAT(typenum);
    const int have = PyArray_TYPE(any);
    const int fits = have == typenum
                  || (wants_float && (PyTypeNum_ISFLOAT(have) || PyTypeNum_ISINTEGER(have)))
                  || (PyTypeNum_ISINTEGER(typenum) && PyTypeNum_ISINTEGER(have)
                      && PyArray_CanCastSafely(have, typenum));
    if (!fits) {
        PyArray_Descr *want = PyArray_DescrFromType(typenum);
        PyErr_Clear();
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: got dtype %s, want %s", argument,
                                PyArray_DESCR(any)->typeobj->tp_name, want->typeobj->tp_name));
        Py_XDECREF(want);
        Py_DECREF(any);
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF((PyObject *)any, typenum,
                                                             NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    Py_DECREF(any);
    return array;
}

PyArrayObject *dice_py_array(PyObject *object, int typenum, int ndim, const char *argument)
{
    PyArrayObject *array = dice_py_array_any(object, typenum, ndim, argument);
    if (array != NULL && !all_finite(array)) {
        Py_DECREF(array);
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: holds NaN or infinity", argument));
        return NULL;
    }
    return array;
}
