/* What the files of the binding share. Python.h is included here and nowhere outside this folder.
 *
 * One convention for failures. A function that can fail returns int: 0 on success, -1 with a Python exception
 * set; its answers go out through pointers. A function that makes an object returns a new reference, or NULL
 * with an exception set. What may run without the lock of the interpreter returns a dice_status, as the core
 * does, and only dice_py_check turns that into an exception. The converters that PyArg_ParseTuple calls (O&)
 * return what it asks for: 1 on success, 0 with an exception set. */
#ifndef DICE_PYTHON_BINDING_H
#define DICE_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_23_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL dice_ARRAY_API
#ifndef DICE_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "backend/backend.h"
#include "base/status.h"
#include "nn/graph.h"
#include "ood/fit/classes.h"
#include "ood/scores/score.h"

/* What the module keeps for its functions and types. */
typedef struct dice_py_module {
    PyTypeObject *graph, *linear; /* the types Graph and Linear */
} dice_py_module;

/* Each file adds its functions and types to the module. */
int dice_py_add_runtime(PyObject *module);    /* isa_*, threads_*, peak_gflops, test hooks */
int dice_py_add_build_info(PyObject *module); /* build_info */
int dice_py_add_device(PyObject *module);     /* cuda_status, device_* */
int dice_py_add_linalg(PyObject *module);     /* _blas_*, eigen, least_norm */
int dice_py_add_graph(PyObject *module);      /* Graph */
int dice_py_add_build(PyObject *module);      /* build_graph */
int dice_py_add_network(PyObject *module);    /* Network */
int dice_py_add_linear(PyObject *module);     /* Linear */
int dice_py_add_fit(PyObject *module);        /* moments_*, classes_*, contribution_* */
int dice_py_add_gaussian(PyObject *module);   /* Gaussian */
int dice_py_add_scores(PyObject *module);     /* score, score_klm, count_bins, activate */
int dice_py_add_bank(PyObject *module);       /* bank_* */
int dice_py_add_metrics(PyObject *module);    /* metric_* */

/* errors.c */

/* 0 where `status` is DICE_OK; else -1 with the exception of that status set, the recorded detail as its
 * text. */
int dice_py_check(dice_status status);

/* `object` where `status` is DICE_OK; else NULL with the exception set and `object` released. A NULL
 * `object`, whose exception is set already, is passed on. */
PyObject *dice_py_result(dice_status status, PyObject *object);

/* arrays.c */

/* `object` as an array of whatever type and shape; else InputError that names `argument`. */
PyArrayObject *dice_py_as_array(PyObject *object, const char *argument);

/* `object` as a C-contiguous, aligned array of `typenum` with `ndim` dimensions and finite values; else
 * InputError that names `argument`. Floating types are converted from floating and integer types, integer
 * types from those that fit. */
PyArrayObject *dice_py_array(PyObject *object, int typenum, int ndim, const char *argument);

/* The same; NaN and infinity are allowed. */
PyArrayObject *dice_py_array_any(PyObject *object, int typenum, int ndim, const char *argument);

/* *data = the numbers of `object`, which the core changes in place: a writable, C-contiguous, aligned float64
 * array of shape (rows), or (rows, columns) where `ndim` is 2; -1 stands for any number. */
int dice_py_in_place(PyObject *object, int ndim, npy_intp rows, npy_intp columns, const char *argument,
                     double **data);

/* *out = `object` as a finite float32 or float64 matrix with at least one column; the caller releases
 * *array. */
int dice_py_rows(PyObject *object, const char *argument, PyArrayObject **array, dice_rows *out);

/* The memory of an array that PyArray_SimpleNew made. */
static inline void *dice_py_data(PyObject *array)
{
    return PyArray_DATA((PyArrayObject *)array);
}

/* dict[key] as a borrowed reference; NULL, with no exception, where it is missing or None. */
PyObject *dice_py_item(PyObject *dict, const char *key);

/* A converter (O&) of an integer from 0 to 2^64 - 1, to uint64_t. */
int dice_py_to_uint64(PyObject *object, void *out);

/* device.c */

/* Where work runs: a back end, and the options that it is given. */
typedef struct dice_py_place {
    const dice_backend *backend;
    dice_options options;
} dice_py_place;

/* *place = the back end of `device` at instruction set `isa` (NULL: DICE_ISA, else the native one) and
 * `precision`. */
int dice_py_find_place(const char *device, const char *isa, const char *precision, dice_py_place *place);

const char *dice_py_precision_name(dice_precision precision);

/* cuda_array.c */

/* An array where it lies: in the host's memory or, as DLPack or __cuda_array_interface__ says, in a GPU's. */
typedef struct dice_py_view {
    void *data;
    int typenum, ndim; /* NPY_UINT8, NPY_FLOAT32, or NPY_NOTYPE for another type */
    npy_intp shape[4];
    PyObject *owner; /* holds the memory until dice_py_release; NULL: the object that was given holds it */
} dice_py_view;

/* *found = whether `object` lies on a GPU (an array of cupy, torch, ...); *view describes it, nothing is
 * copied. InputError where the back end cannot take it as it is, or it holds NaN or infinity. */
int dice_py_find_cuda(PyObject *object, const char *argument, const dice_py_place *place, int *found,
                      dice_py_view *view);

/* The same, for float32 with `ndim` dimensions alone; InputError for another array on a GPU. */
int dice_py_find_cuda_floats(PyObject *object, int ndim, const char *argument, const dice_py_place *place,
                             int *found, dice_py_view *view);

/* *view = float32 with `ndim` dimensions, on a GPU as above or on the host as dice_py_array takes it. */
int dice_py_floats(PyObject *object, int ndim, const char *argument, const dice_py_place *place,
                   dice_py_view *view);

/* Gives the owner of a view back, whether or not an exception is set; NULL is allowed. */
void dice_py_release(PyObject *owner);

/* fit.c */

/* *out = the state of a dice.stats.moments.ClassMoments, a tuple (count, mean, scatter or None) of arrays
 * that the core may change in place. */
int dice_py_classes(PyObject *state, const char *argument, dice_classes *out);

/* linear.c */

/* A Linear of W (M, D) and b (M) in the host's memory. */
PyObject *dice_py_linear_new(const dice_py_module *state, const float *weight, const float *bias,
                             npy_intp classes, npy_intp features, const dice_py_place *place);

/* logits (N, M) = W h + b of a Linear, for finite h (N, D); may run without the interpreter's lock. */
dice_status dice_py_linear_logits(PyObject *linear, const float *h, size_t n, float *logits);

/* graph.c */

/* *out = the graph of a Graph of this module, which stays its owner; TypeError for another object. */
int dice_py_graph(const dice_py_module *state, PyObject *object, const dice_graph **out);

/* A Graph that owns `graph`, which is freed on failure. */
PyObject *dice_py_graph_new(const dice_py_module *state, dice_graph *graph);

/* values[3] = the three numbers of `object`; they stay as they are where it is None. */
int dice_py_triple(PyObject *object, const char *argument, float values[3]);

#endif
