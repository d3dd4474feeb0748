/* From Python arrays to what the core takes. See binding.h. */
#include "python/binding.h"

#include <math.h>

static int all_finite(PyArrayObject *array)
{
    const npy_intp n = PyArray_SIZE(array);
    /* x - x is 0 for finite x and NaN otherwise; NaN stays in the sum */
    if (PyArray_TYPE(array) == NPY_FLOAT32) {
        const float *x = PyArray_DATA(array);
        float sum = 0;
        for (npy_intp i = 0; i < n; i++) {
            sum += x[i] - x[i];
        }
        return sum == 0;
    }
    if (PyArray_TYPE(array) == NPY_FLOAT64) {
        const double *x = PyArray_DATA(array);
        double sum = 0;
        for (npy_intp i = 0; i < n; i++) {
            sum += x[i] - x[i];
        }
        return sum == 0;
    }
    return 1;
}

PyArrayObject *dice_py_array(PyObject *object, int typenum, int ndim, const char *argument)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (any == NULL) {
        PyErr_Clear();
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: cannot be read as an array", argument));
        return NULL;
    }
    if (PyArray_NDIM(any) != ndim) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: got %d dimensions, want %d", argument, PyArray_NDIM(any), ndim));
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
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(
        (PyObject *)any, typenum, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    Py_DECREF(any);
    if (array != NULL && !all_finite(array)) {
        Py_DECREF(array);
        dice_py_raise(dice_fail(DICE_E_INPUT, "%s: holds NaN or infinity", argument));
        return NULL;
    }
    return array;
}
