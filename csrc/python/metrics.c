/* Metrics of scores. See ood/metrics/metric.h. */
#include "python/binding.h"

#include "ood/metrics/metric.h"

enum { MOST_REPLICATES = 1 << 24 }; /* more would only fill the memory */

/* The arguments that both functions begin with; on success the caller releases both arrays. */
typedef struct scores {
    PyArrayObject *id, *ood;
    dice_metric_rule rule;
} scores;

static int read_scores(PyObject *id, PyObject *ood, int convention, double tpr, double miss, scores *out)
{
    if (convention < DICE_METRIC_PAPER || convention > DICE_METRIC_SKLEARN) {
        return dice_py_check(dice_fail(DICE_E_INPUT, "convention: got %d", convention));
    }
    if (!(tpr > 0 && tpr <= 1) || !(miss >= 0 && miss <= 1)) {
        return dice_py_check(dice_fail(
            DICE_E_INPUT, "tpr: got %g, which %g of the scores miss; want above 0 and at most 1", tpr, miss));
    }
    out->rule = (dice_metric_rule){(dice_metric_convention)convention, tpr, miss};
    out->id = dice_py_array_any(id, NPY_FLOAT64, 1, "scores_id");
    out->ood = out->id == NULL ? NULL : dice_py_array_any(ood, NPY_FLOAT64, 1, "scores_ood");
    if (out->ood == NULL) {
        Py_CLEAR(out->id);
        return -1;
    }
    return 0;
}

static void release_scores(scores *s)
{
    Py_DECREF(s->id);
    Py_DECREF(s->ood);
}

static PyObject *metric_measure(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *id, *ood;
    int convention;
    double tpr, miss;
    scores s;
    if (!PyArg_ParseTuple(args, "OOidd", &id, &ood, &convention, &tpr, &miss)
        || read_scores(id, ood, convention, tpr, miss, &s) < 0) {
        return NULL;
    }
    dice_status status;
    dice_metric m = {0};
    Py_BEGIN_ALLOW_THREADS
    status = dice_metric_measure(PyArray_DATA(s.id), (size_t)PyArray_SIZE(s.id), PyArray_DATA(s.ood),
                                 (size_t)PyArray_SIZE(s.ood), &s.rule, &m);
    Py_END_ALLOW_THREADS
    release_scores(&s);
    return dice_py_result(status,
                          Py_BuildValue("(dddddd)", m.fpr, m.auroc, m.auin, m.auout, m.dterr, m.autc));
}

static PyObject *metric_bootstrap(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *id, *ood;
    int convention;
    double tpr, miss;
    Py_ssize_t replicates;
    uint64_t seed;
    scores s;
    if (!PyArg_ParseTuple(args, "OOiddnO&", &id, &ood, &convention, &tpr, &miss, &replicates,
                          dice_py_to_uint64, &seed)) {
        return NULL;
    }
    if (replicates < 0 || replicates > MOST_REPLICATES) {
        dice_py_check(
            dice_fail(DICE_E_INPUT, "replicates: got %zd, want 0 to %d", replicates, MOST_REPLICATES));
        return NULL;
    }
    if (read_scores(id, ood, convention, tpr, miss, &s) < 0) {
        return NULL;
    }
    const npy_intp shape[2] = {replicates, DICE_METRIC_COUNT};
    PyObject *out = PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (out != NULL) {
        dice_metric *to = dice_py_data(out);
        dice_status status;
        Py_BEGIN_ALLOW_THREADS
        status = dice_metric_bootstrap(PyArray_DATA(s.id), (size_t)PyArray_SIZE(s.id), PyArray_DATA(s.ood),
                                       (size_t)PyArray_SIZE(s.ood), &s.rule, (size_t)replicates, seed, to);
        Py_END_ALLOW_THREADS
        out = dice_py_result(status, out);
    }
    release_scores(&s);
    return out;
}

static PyMethodDef methods[] = {
    {"metric_measure", metric_measure, METH_VARARGS,
     "metric_measure($module, scores_id, scores_ood, convention, tpr, miss, /)\n--\n\n"
     "How well scores tell ID from OOD: (fpr, auroc, auin, auout, dterr, autc).\n\n"
     "scores_id: float64 (N,), scores_ood: float64 (M,), higher = more in-distribution; convention: 0\n"
     "for the paper's, 1 for OpenOOD's, 2 for scikit-learn's; tpr: the true positive rate at which\n"
     "fpr is taken; miss: 1 - tpr, computed in decimal and then rounded once."},
    {"metric_bootstrap", metric_bootstrap, METH_VARARGS,
     "metric_bootstrap($module, scores_id, scores_ood, convention, tpr, miss, replicates, seed, /)\n--\n\n"
     "metric_measure of bootstrap samples of both sets: float64 (replicates, 6).\n\n"
     "seed: from 0 to 2^64 - 1; the same one draws the same samples on every machine."},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_metrics(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
