/* The type Gaussian: Mahalanobis distances, from the moments of classes. See ood/scores/gaussian.h. */
#include "python/binding.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "ood/scores/gaussian.h"

typedef struct gaussian_object {
    PyObject_HEAD
    dice_py_place place;
    dice_gaussian *gaussian;
} gaussian_object;

static void gaussian_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    dice_gaussian_free(((gaussian_object *)self)->gaussian);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The covariance about the classes' means, and the distance to the nearest of those that have images; with
 * `total`, the covariance about the one mean of all images, and the distance to it. */
static dice_status make_gaussian(const dice_classes *classes, int total, gaussian_object *made)
{
    const size_t features = classes->features;
    void *scatter_memory = NULL, *means_memory = NULL;
    dice_status status = dice_alloc(features * (features + 1), sizeof(double), &scatter_memory);
    if (status != DICE_OK
        || (status = dice_alloc(classes->classes * features, sizeof(double), &means_memory)) != DICE_OK) {
        goto done;
    }
    double *covariance = scatter_memory, *centre = covariance + features * features;
    double *means = means_memory, images = 0;
    size_t seen = 0;
    if ((status = dice_classes_scatter(classes, total, covariance, centre)) != DICE_OK) {
        goto done;
    }
    for (size_t c = 0; c < classes->classes; c++) {
        if (classes->count[c] > 0) {
            images += classes->count[c];
            memcpy(means + seen++ * features, classes->mean + c * features, features * sizeof *means);
        }
    }
    int finite = 1;
    for (size_t i = 0; i < features * features; i++) {
        covariance[i] /= images;
        finite &= isfinite(covariance[i]) != 0;
    }
    for (size_t d = 0; d < features; d++) {
        finite &= isfinite(centre[d]) != 0;
    }
    for (size_t i = 0; i < seen * features; i++) {
        finite &= isfinite(means[i]) != 0;
    }
    status = !finite
               ? dice_fail(DICE_E_INPUT, "statistics: hold NaN or infinity")
               : dice_gaussian_create(covariance, centre, total ? centre : means, total ? 1 : seen, features,
                                      made->place.backend, &made->place.options, &made->gaussian);
done:
    dice_free(scatter_memory);
    dice_free(means_memory);
    return status;
}

static int check_seen(const dice_classes *classes)
{
    double images = 0;
    for (size_t c = 0; c < classes->classes; c++) {
        if (!(classes->count[c] >= 0) || isinf(classes->count[c])) {
            return dice_py_check(
                dice_fail(DICE_E_INPUT, "statistics: class %zu has %g images", c, classes->count[c]));
        }
        images += classes->count[c];
    }
    if (classes->scatter == NULL || classes->features == 0 || images == 0) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "statistics: no images seen; fit on training features"));
    }
    return 0;
}

static PyObject *gaussian_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"state", "total", "device", NULL};
    const char *device = "cpu";
    PyObject *state;
    int total;
    dice_classes classes;
    dice_py_place place;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Op|s", names, &state, &total, &device)
        || dice_py_classes(state, "state", &classes) < 0 || check_seen(&classes) < 0
        || dice_py_find_place(device, NULL, "float32", &place) < 0) {
        return NULL;
    }
    gaussian_object *made = (gaussian_object *)type->tp_alloc(type, 0);
    if (made == NULL) {
        return NULL;
    }
    made->place = place;
    dice_status status;
    Py_BEGIN_ALLOW_THREADS
    status = make_gaussian(&classes, total, made);
    Py_END_ALLOW_THREADS
    return dice_py_result(status, (PyObject *)made);
}

/* *rows = h, on a GPU or on the host; the caller releases *owner. */
static int read_rows(const dice_py_place *place, PyObject *object, dice_rows *rows, PyObject **owner)
{
    dice_py_view view;
    PyArrayObject *array;
    int found;
    if (dice_py_find_cuda_floats(object, 2, "h", place, &found, &view) < 0) {
        return -1;
    }
    if (found) {
        *rows = (dice_rows){.data = view.data, .n = (size_t)view.shape[0], .width = (size_t)view.shape[1]};
        *owner = view.owner;
        return 0;
    }
    if (dice_py_rows(object, "h", &array, rows) < 0) {
        return -1;
    }
    *owner = (PyObject *)array;
    return 0;
}

static PyObject *gaussian_distance(PyObject *self, PyObject *object)
{
    const dice_gaussian *gaussian = ((gaussian_object *)self)->gaussian;
    PyObject *owner, *result = NULL;
    dice_rows h;
    if (read_rows(&((gaussian_object *)self)->place, object, &h, &owner) < 0) {
        return NULL;
    }
    const npy_intp n = (npy_intp)h.n;
    if (h.width != dice_gaussian_features(gaussian)) {
        dice_py_check(dice_fail(DICE_E_INPUT, "h: got %zu features, want %zu", h.width,
                                dice_gaussian_features(gaussian)));
    } else if ((result = PyArray_SimpleNew(1, &n, NPY_FLOAT64)) != NULL) {
        double *to = dice_py_data(result);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_gaussian_distance(gaussian, &h, to);
        Py_END_ALLOW_THREADS
        result = dice_py_result(status, result);
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
     "distance($self, h, /)\n--\n\n"
     "The squared Mahalanobis distance of each row of h to the nearest mean: float64 (N,).\n\n"
     "h: float32 or float64 (N, D). On the CPU an image's bits depend neither on the others nor on the\n"
     "number of threads."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef gaussian_getset[] = {
    {"rank", gaussian_rank, NULL, "rank of the covariance: D, or less where it is singular", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot gaussian_slots[] = {
    {Py_tp_doc,
     "Gaussian(state, total, device=\"cpu\")\n--\n\n"
     "Mahalanobis distances under one shared covariance.\n\n"
     "state: the moments of classes, as classes_add changes them, with a scatter; copied. total: false for\n"
     "the covariance about the means of the classes and the distance to the nearest of these; true for the\n"
     "covariance about the mean of all images and the distance to it."},
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

int dice_py_add_gaussian(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &gaussian_spec, NULL);
    const int result = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return result;
}
