/* What the files of the binding share. Python.h is included here and nowhere outside this folder. */
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
#include "ood/scores/score.h"

/* Each file adds its functions and types to the module; -1 with an exception set on failure. */
int dice_py_add_runtime(PyObject *module);    /* isa, threads, test hooks */
int dice_py_add_build_info(PyObject *module); /* how the extension was built */
int dice_py_add_blas(PyObject *module);       /* products of OpenBLAS */
int dice_py_add_network(PyObject *module);    /* Network, build_network */
int dice_py_add_run_ops(PyObject *module);    /* run_ops: any list of ops, for tests */
int dice_py_add_ood(PyObject *module);        /* moments, contribution */
int dice_py_add_metrics(PyObject *module);    /* FPR95, AUROC, ... */
int dice_py_add_linear(PyObject *module);     /* Linear: W h + b, whole or masked */
int dice_py_add_scores(PyObject *module);     /* scores of logits and features */
int dice_py_add_device(PyObject *module);     /* the GPU: status, statistics */
int dice_py_add_classes(PyObject *module);    /* class means, covariances, their eigenvectors */
int dice_py_add_bank(PyObject *module);       /* scores against a bank, activation rules */

/* Sets the Python exception that belongs to `status`, with the recorded detail; returns NULL. */
PyObject *dice_py_raise(dice_status status);

/* A new reference to `object` as a C-contiguous aligned array of `typenum` with `ndim` dimensions and finite
 * values, or NULL with dice.InputError naming `argument`. Floating types convert only from floating or
 * integer types that fit; no other silent cast. */
PyArrayObject *dice_py_array(PyObject *object, int typenum, int ndim, const char *argument);

/* The same, NaN and infinity let through. */
PyArrayObject *dice_py_array_any(PyObject *object, int typenum, int ndim, const char *argument);

/* An array on a GPU, as DLPack or __cuda_array_interface__ describes it. */
typedef struct dice_py_cuda_array {
    void *data;
    uintptr_t stream;  /* that makes it; waited for by dice_py_cuda */
    int typenum, ndim; /* NPY_UINT8, NPY_FLOAT32 or NPY_NOTYPE */
    npy_intp shape[4];
    PyObject
        *owner; /* of the memory, for dice_py_release when the caller is done; NULL = the object itself */
} dice_py_cuda_array;

void dice_py_release(PyObject *owner); /* whether or not an exception is set; NULL is allowed */

/* 1 with *array filled where `object` lives on a GPU (cupy's, torch's, ...; nothing is copied); 0 where it
 * does not; -1 with dice.InputError where the back end cannot take it as it is, or it holds NaN or infinity.
 */
int dice_py_cuda(PyObject *object, const char *argument, const dice_backend *backend,
                 const dice_options *options, dice_py_cuda_array *array);

/* *array = a float32 matrix on a GPU, as dice_py_cuda takes it, or on the host, as dice_py_array does. 0 with
 * dice.InputError naming `argument`. */
int dice_py_matrix(PyObject *object, const char *argument, const dice_backend *backend,
                   const dice_options *options, dice_py_cuda_array *array);

/* *out = a float32 or float64 matrix with at least one column; the caller releases *array. 0 with
 * dice.InputError naming `argument`. */
int dice_py_rows(PyObject *object, const char *argument, PyArrayObject **array, dice_rows *out);

/* A new Linear of W (M, D) and b (M), both in host memory, made ready by `backend`; NULL with an exception
 * set. */
PyObject *dice_py_linear(const float *weight, const float *bias, npy_intp classes, npy_intp features,
                         const dice_backend *backend, const dice_options *options);

/* logits (N, M) = W h + b of a Linear, h (N, D) unchecked; the interpreter's lock is not needed. */
dice_status dice_py_linear_logits(PyObject *linear, const float *h, size_t n, float *logits);

/* Fills *options from names; isa NULL means DICE_ISA, else the native one. */
dice_status dice_py_options(const char *isa, const char *precision, dice_options *options);

#endif
