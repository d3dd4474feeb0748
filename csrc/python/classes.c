/* Class means, scatter, and the type Gaussian made from them. See ood/classes.h and ood/gaussian.h. */
#include "python/binding.h"

#include <string.h>

#include "base/memory.h"
#include "linalg/blas.h"
#include "ood/fit/classes.h"
#include "ood/scores/gaussian.h"

static double *state_of(PyObject *object, int ndim, npy_intp rows, npy_intp columns, const char *argument)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_FLOAT64 || PyArray_NDIM(array) != ndim
        || !PyArray_ISCARRAY(array) || (rows >= 0 && PyArray_DIM(array, 0) != rows)
        || (columns >= 0 && PyArray_DIM(array, 1) != columns)) {
        dice_py_raise(dice_fail(DICE_E_INPUT,
                                "%s: want a writable contiguous float64 array of matching shape", argument));
        return NULL;
    }
    return PyArray_DATA(array);
}

/* The state of a dice.stats.moments.ClassMoments: (count, mean, scatter or None). */
static int classes_of(PyObject *state, const char *argument, dice_classes *out)
{
    PyObject *count, *mean, *scatter;
    if (!PyArg_ParseTuple(state, "OOO", &count, &mean, &scatter)
        || (out->mean = state_of(mean, 2, -1, -1, argument)) == NULL) {
        return 0;
    }
    const npy_intp *shape = PyArray_DIMS((PyArrayObject *)mean);
    out->classes = (size_t)shape[0];
    out->features = (size_t)shape[1];
    out->scatter = NULL;
    return (out->count = state_of(count, 1, shape[0], -1, argument)) != NULL
        && (scatter == Py_None
            || (out->scatter = state_of(scatter, 2, shape[1], shape[1], argument)) != NULL);
}

static PyObject *classes_add(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *x_object, *label_object;
    dice_classes classes;
    if (!PyArg_ParseTuple(args, "O!OO", &PyTuple_Type, &state, &x_object, &label_object)
        || !classes_of(state, "state", &classes)) {
        return NULL;
    }
    PyArrayObject *label = NULL, *x = dice_py_array(x_object, NPY_FLOAT64, 2, "h");
    if (x == NULL || (label = dice_py_array(label_object, NPY_INT64, 1, "y")) == NULL) {
        Py_XDECREF(x);
        return NULL;
    }
    const npy_intp n = PyArray_DIM(x, 0);
    const int64_t *labels = PyArray_DATA(label);
    dice_status status = DICE_OK;
    if (PyArray_DIM(label, 0) != n || (size_t)PyArray_DIM(x, 1) != classes.features) {
        status = dice_fail(DICE_E_INPUT, "h: got shape (%zd, %zd) for %zd labels and %zu features",
                           (Py_ssize_t)n, (Py_ssize_t)PyArray_DIM(x, 1), (Py_ssize_t)PyArray_DIM(label, 0),
                           classes.features);
    }
    for (npy_intp i = 0; i < n && status == DICE_OK; i++) {
        if (labels[i] >= (int64_t)classes.classes) {
            status = dice_fail(DICE_E_INPUT, "y: got class %lld of %zu", (long long)labels[i],
                               classes.classes);
        }
    }
    if (status == DICE_OK) {
        Py_BEGIN_ALLOW_THREADS status = dice_classes_add(&classes, PyArray_DATA(x), labels, (size_t)n);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(x);
    Py_DECREF(label);
    if (status != DICE_OK) {
        return dice_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyObject *classes_merge(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state, *other_state;
    dice_classes classes, other;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &state, &PyTuple_Type, &other_state)
        || !classes_of(state, "state", &classes) || !classes_of(other_state, "other", &other)) {
        return NULL;
    }
    if (classes.classes != other.classes || classes.features != other.features
        || (classes.scatter == NULL) != (other.scatter == NULL)) {
        return dice_py_raise(dice_fail(DICE_E_INPUT,
                                       "other: got %zu classes of %zu features, want %zu of %zu",
                                       other.classes, other.features, classes.classes, classes.features));
    }
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = dice_classes_merge(&classes, &other);
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        return dice_py_raise(status);
    }
    Py_RETURN_NONE;
}

static PyObject *classes_scatter(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *state;
    int total;
    dice_classes classes;
    if (!PyArg_ParseTuple(args, "O!p", &PyTuple_Type, &state, &total)
        || !classes_of(state, "state", &classes)) {
        return NULL;
    }
    npy_intp shape[2] = {(npy_intp)classes.features, (npy_intp)classes.features};
    PyObject *scatter = PyArray_SimpleNew(2, shape, NPY_FLOAT64),
             *mean = PyArray_SimpleNew(1, shape, NPY_FLOAT64);
    if (scatter == NULL || mean == NULL || classes.scatter == NULL) {
        Py_XDECREF(scatter);
        Py_XDECREF(mean);
        return PyErr_Occurred() ? NULL : dice_py_raise(dice_fail(DICE_E_INPUT, "state: keeps no scatter"));
    }
    dice_status status;
    Py_BEGIN_ALLOW_THREADS status = dice_classes_scatter(
        &classes, total, PyArray_DATA((PyArrayObject *)scatter), PyArray_DATA((PyArrayObject *)mean));
    Py_END_ALLOW_THREADS if (status != DICE_OK)
    {
        Py_DECREF(scatter);
        Py_DECREF(mean);
        return dice_py_raise(status);
    }
    return Py_BuildValue("NN", scatter, mean);
}

/* eigen(a) -> values, vectors */
static PyObject *eigen(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *object;
    PyArrayObject *a = NULL;
    if (!PyArg_ParseTuple(args, "O", &object) || (a = dice_py_array(object, NPY_FLOAT64, 2, "a")) == NULL) {
        return NULL;
    }
    PyObject *vectors = PyArray_NewCopy(a, NPY_CORDER),
             *values = PyArray_SimpleNew(1, PyArray_DIMS(a), NPY_FLOAT64);
    dice_status status = DICE_OK;
    if (PyArray_DIM(a, 0) != PyArray_DIM(a, 1)) {
        status = dice_fail(DICE_E_INPUT, "a: is not square");
    } else if (vectors != NULL && values != NULL) {
        Py_BEGIN_ALLOW_THREADS status = dice_blas_eigen((size_t)PyArray_DIM(a, 0),
                                                        PyArray_DATA((PyArrayObject *)vectors),
                                                        PyArray_DATA((PyArrayObject *)values));
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(a);
    if (status != DICE_OK || vectors == NULL || values == NULL) {
        Py_XDECREF(vectors);
        Py_XDECREF(values);
        return status != DICE_OK ? dice_py_raise(status) : NULL;
    }
    return Py_BuildValue("NN", values, vectors);
}

/* least_norm(a, b) -> x */
static PyObject *least_norm(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *a_object, *b_object, *x = NULL;
    PyArrayObject *a = NULL, *b = NULL;
    if (!PyArg_ParseTuple(args, "OO", &a_object, &b_object)
        || (a = dice_py_array(a_object, NPY_FLOAT64, 2, "W")) == NULL
        || (b = dice_py_array(b_object, NPY_FLOAT64, 1, "b")) == NULL) {
        goto done;
    }
    if (PyArray_DIM(b, 0) != PyArray_DIM(a, 0)) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "b: got %zd values for %zd rows", (Py_ssize_t)PyArray_DIM(b, 0),
                                (Py_ssize_t)PyArray_DIM(a, 0)));
        goto done;
    }
    x = PyArray_SimpleNew(1, PyArray_DIMS(a) + 1, NPY_FLOAT64);
    if (x != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_blas_least_norm(
            (size_t)PyArray_DIM(a, 0), (size_t)PyArray_DIM(a, 1), PyArray_DATA(a), PyArray_DATA(b),
            PyArray_DATA((PyArrayObject *)x));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(x);
            dice_py_raise(status);
        }
    }
done:
    Py_XDECREF(a);
    Py_XDECREF(b);
    return x;
}

typedef struct gaussian_object {
    PyObject_HEAD const dice_backend *backend;
    dice_options options;
    dice_gaussian *gaussian;
} gaussian_object;

static void gaussian_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    dice_gaussian_free(((gaussian_object *)self)->gaussian);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The covariance about the class means, or about the one mean of all; its means in the former's own rows. */
static dice_status make_gaussian(const dice_classes *classes, int total, gaussian_object *made)
{
    const size_t features = classes->features;
    void *memory = NULL, *kept = NULL;
    dice_status status = dice_alloc(features * (features + 1), sizeof(double), &memory);
    if (status != DICE_OK
        || (status = dice_alloc(classes->classes * features, sizeof(double), &kept)) != DICE_OK) {
        goto done;
    }
    double *covariance = memory, *centre = covariance + features * features, *means = kept, images = 0;
    size_t seen = 0;
    status = dice_classes_scatter(classes, total, covariance, centre);
    for (size_t c = 0; c < classes->classes; c++) {
        if (classes->count[c] > 0) {
            images += classes->count[c];
            memcpy(means + seen++ * features, classes->mean + c * features, features * sizeof *means);
        }
    }
    for (size_t i = 0; i < features * features; i++) {
        covariance[i] /= images;
    }
    if (status == DICE_OK) {
        status = dice_gaussian_create(covariance, centre, total ? centre : means, total ? 1 : seen, features,
                                      made->backend, &made->options, &made->gaussian);
    }
done:
    dice_free(memory);
    dice_free(kept);
    return status;
}

static PyObject *gaussian_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"state", "total", "device", NULL};
    const char *device = "cpu";
    PyObject *state;
    int total;
    dice_classes classes;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!p|s", names, &PyTuple_Type, &state, &total, &device)
        || !classes_of(state, "state", &classes)) {
        return NULL;
    }
    double images = 0;
    for (size_t c = 0; c < classes.classes; c++) {
        images += classes.count[c];
    }
    if (classes.scatter == NULL || images == 0) {
        return dice_py_raise(dice_fail(DICE_E_INPUT, "statistics: no images seen; fit on training features"));
    }
    gaussian_object *made = (gaussian_object *)type->tp_alloc(type, 0);
    if (made != NULL) {
        dice_status status = dice_backend_find(device, &made->options, &made->backend);
        Py_BEGIN_ALLOW_THREADS if (status == DICE_OK)
        {
            status = make_gaussian(&classes, total, made);
        }
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(made);
            dice_py_raise(status);
        }
    }
    return (PyObject *)made;
}

/* *rows = h on a GPU or on the host; the caller releases *owner. 0 with an exception set. */
static int gaussian_rows(const gaussian_object *self, PyObject *object, dice_rows *rows, PyObject **owner)
{
    dice_py_cuda_array there = {0};
    const int on_gpu = dice_py_cuda(object, "h", self->backend, &self->options, &there);
    if (on_gpu == 1 && (there.typenum != NPY_FLOAT32 || there.ndim != 2)) {
        dice_py_release(there.owner);
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: on the GPU, want float32 with 2 dimensions"));
        return 0;
    }
    if (on_gpu == 1) {
        *rows = (dice_rows){.data = there.data, .n = (size_t)there.shape[0], .width = (size_t)there.shape[1]};
        *owner = there.owner;
    }
    return on_gpu == 1 || (on_gpu == 0 && dice_py_rows(object, "h", (PyArrayObject **)owner, rows));
}

static PyObject *gaussian_distance(PyObject *self, PyObject *object)
{
    const dice_gaussian *gaussian = ((gaussian_object *)self)->gaussian;
    PyObject *owner = NULL, *result = NULL;
    dice_rows h;
    if (!gaussian_rows((gaussian_object *)self, object, &h, &owner)) {
        return NULL;
    }
    const npy_intp shape[1] = {(npy_intp)h.n};
    if (h.width != dice_gaussian_features(gaussian)) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "h: got %zu features, want %zu", h.width,
                                dice_gaussian_features(gaussian)));
    } else if ((result = PyArray_SimpleNew(1, shape, NPY_FLOAT64)) != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_gaussian_distance(gaussian, &h,
                                                               PyArray_DATA((PyArrayObject *)result));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(result);
            dice_py_raise(status);
        }
    }
    dice_py_release(owner);
    return result;
}

static PyObject *gaussian_rank(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(dice_gaussian_rank(((gaussian_object *)self)->gaussian));
}

static PyMethodDef gaussian_methods[] = {
    {"distance", gaussian_distance, METH_O,
     "distance(h) -> float64 (N,): least squared Mahalanobis distance of h (N, D), float32 or float64, to a "
     "mean. On the "
     "CPU the same bits for every N and number of threads."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef gaussian_getset[] = {
    {"rank", gaussian_rank, NULL, "of the covariance, D where it is not singular", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot gaussian_slots[] = {
    {Py_tp_doc, "Gaussian(state, total, device=\"cpu\"): the covariance of a ClassMoments' state about its "
                "classes' means or, with "
                "total, about the mean of all."},
    {Py_tp_new, gaussian_new},
    {Py_tp_dealloc, gaussian_dealloc},
    {Py_tp_methods, gaussian_methods},
    {Py_tp_getset, gaussian_getset},
    {0, NULL},
};

static PyType_Spec gaussian_spec = {
    .name = "dice._core.Gaussian",
    .basicsize = sizeof(gaussian_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gaussian_slots,
};

static PyMethodDef methods[] = {
    {"classes_add", classes_add, METH_VARARGS,
     "classes_add((count, mean, scatter), h, label): adds h (N, D) with label int64 (N,), below 0 = left "
     "out."},
    {"classes_merge", classes_merge, METH_VARARGS,
     "classes_merge(state, other): adds the other state to the first."},
    {"classes_scatter", classes_scatter, METH_VARARGS,
     "classes_scatter(state, total) -> (D, D), (D,): scatter about the classes' means or that of all, which "
     "is returned."},
    {"eigen", eigen, METH_VARARGS,
     "eigen(a) -> values (n,), rising, and vectors (n, n), one a row, of the symmetric float64 a (n, n)."},
    {"least_norm", least_norm, METH_VARARGS, "least_norm(a, b) -> pinv(a) b, float64."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_classes(PyObject *module)
{
    if (PyModule_AddFunctions(module, methods) < 0) {
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &gaussian_spec, NULL);
    const int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}
