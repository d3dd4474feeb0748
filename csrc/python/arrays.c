/* From Python's arrays and numbers to what the core takes. See binding.h. */
#include "python/binding.h"

#include <stdint.h>
#include <string.h>

/* Looks at the bits of the exponent, which a compiler can test several at a time. */
static int is_finite(PyArrayObject *array)
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

PyArrayObject *dice_py_as_array(PyObject *object, const char *argument)
{
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_O(object);
    if (array == NULL && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        dice_py_check(dice_fail(DICE_E_INPUT, "%s: cannot be read as an array", argument));
    }
    return array;
}

PyArrayObject *dice_py_array_any(PyObject *object, int typenum, int ndim, const char *argument)
{
    PyArrayObject *any = dice_py_as_array(object, argument);
    if (any == NULL) {
        return NULL;
    }
    if (PyArray_NDIM(any) != ndim) {
        dice_py_check(
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
        PyArray_Descr *want = PyArray_DescrFromType(typenum); /* one of numpy's own, which are always there */
        dice_py_check(dice_fail(DICE_E_INPUT, "%s: got dtype %s, want %s", argument,
                                PyArray_DESCR(any)->typeobj->tp_name, want->typeobj->tp_name));
        Py_DECREF(want);
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
    if (array != NULL && !is_finite(array)) {
        Py_DECREF(array);
        dice_py_check(dice_fail(DICE_E_INPUT, "%s: holds NaN or infinity", argument));
        return NULL;
    }
    return array;
}

int dice_py_in_place(PyObject *object, int ndim, npy_intp rows, npy_intp columns, const char *argument,
                     double **data)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_FLOAT64 || PyArray_NDIM(array) != ndim
        || !PyArray_ISCARRAY(array) || (rows >= 0 && PyArray_DIM(array, 0) != rows)
        || (ndim == 2 && columns >= 0 && PyArray_DIM(array, 1) != columns)) {
        return dice_py_check(dice_fail(
            DICE_E_INPUT, "%s: want a writable contiguous float64 array of matching shape", argument));
    }
    *data = PyArray_DATA(array);
    return 0;
}

int dice_py_rows(PyObject *object, const char *argument, PyArrayObject **array, dice_rows *out)
{
    const int is_double = PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_FLOAT64;
    *array = dice_py_array(object, is_double ? NPY_FLOAT64 : NPY_FLOAT32, 2, argument);
    if (*array == NULL) {
        return -1;
    }
    if (PyArray_DIM(*array, 1) == 0) {
        Py_CLEAR(*array);
        return dice_py_check(dice_fail(DICE_E_INPUT, "%s: has no columns", argument));
    }
    *out = (dice_rows){.data = PyArray_DATA(*array),
                       .is_double = is_double,
                       .n = (size_t)PyArray_DIM(*array, 0),
                       .width = (size_t)PyArray_DIM(*array, 1)};
    return 0;
}

PyObject *dice_py_item(PyObject *dict, const char *key)
{
    PyObject *value = PyDict_GetItemString(dict, key);
    return value == Py_None ? NULL : value;
}

int dice_py_to_uint64(PyObject *object, void *out)
{
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL) {
        return 0;
    }
    const unsigned long long value = PyLong_AsUnsignedLongLong(integer);
    Py_DECREF(integer);
    *(uint64_t *)out = value;
    return value != (unsigned long long)-1 || !PyErr_Occurred();
}
