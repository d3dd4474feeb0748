/* Metrics of scores. See ood/metrics/metric.h. */
#include "python/binding.h"

#include "ood/metrics/metric.h"

/* The arguments that both functions begin with; on success the caller releases both arrays. */
typedef struct scores {
    PyArrayObject *id, *ood;
    dice_metric_rule rule;
} scores;

static int scores_of(PyObject *id, PyObject *ood, int convention, scores *out)
{
    if (convention < DICE_METRIC_PAPER || convention > DICE_METRIC_SKLEARN) {
        dice_py_raise(dice_fail(DICE_E_INPUT, "convention: got %d", convention));
        return 0;
    }
    out->rule.convention = (dice_metric_convention)convention;
    out->id = dice_py_array_any(id, NPY_FLOAT64, 1, "scores_id");
    out->ood = out->id == NULL ? NULL : dice_py_array_any(ood, NPY_FLOAT64, 1, "scores_ood");
    if (out->ood == NULL) {
        Py_CLEAR(out->id);
    }
    return out->ood != NULL;
}

static void scores_release(scores *s)
{
    Py_DECREF(s->id);
    Py_DECREF(s->ood);
}

static PyObject *metric_measure(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *id, *ood;
    int convention;
    scores s;
    if (!PyArg_ParseTuple(args, "OOidd", &id, &ood, &convention, &s.rule.tpr, &s.rule.miss)
        || !scores_of(id, ood, convention, &s)) {
        return NULL;
    }
    dice_status status;
    dice_metric m;
    Py_BEGIN_ALLOW_THREADS status = dice_metric_measure(PyArray_DATA(s.id), (size_t)PyArray_SIZE(s.id),
                                                        PyArray_DATA(s.ood), (size_t)PyArray_SIZE(s.ood),
                                                        &s.rule, &m);
    Py_END_ALLOW_THREADS scores_release(&s);
    return status != DICE_OK ? dice_py_raise(status)
                             : Py_BuildValue("(dddddd)", m.fpr, m.auroc, m.auin, m.auout, m.dterr, m.autc);
}

static PyObject *metric_bootstrap(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *id, *ood;
    int convention;
    Py_ssize_t replicates;
    unsigned long long seed;
    scores s;
    if (!PyArg_ParseTuple(args, "OOiddnK", &id, &ood, &convention, &s.rule.tpr, &s.rule.miss, &replicates,
                          &seed)
        || !scores_of(id, ood, convention, &s)) {
        return NULL;
    }
    const npy_intp shape[2] = {replicates < 0 ? 0 : replicates, DICE_METRIC_COUNT};
    PyObject *out = PyArray_SimpleNew(2, shape, NPY_FLOAT64);
    if (out != NULL) {
        dice_status status;
        Py_BEGIN_ALLOW_THREADS status = dice_metric_bootstrap(
            PyArray_DATA(s.id), (size_t)PyArray_SIZE(s.id), PyArray_DATA(s.ood), (size_t)PyArray_SIZE(s.ood),
            &s.rule, (size_t)shape[0], seed, PyArray_DATA((PyArrayObject *)out));
        Py_END_ALLOW_THREADS if (status != DICE_OK)
        {
            Py_CLEAR(out);
            dice_py_raise(status);
        }
    }
    scores_release(&s);
    return out;
}

static PyMethodDef methods[] = {
    {"metric_measure", metric_measure, METH_VARARGS,
     "metric_measure(scores_id, scores_ood, convention, tpr, miss) -> (fpr, auroc, auin, auout, dterr, "
     "autc)"},
    {"metric_bootstrap", metric_bootstrap, METH_VARARGS,
     "metric_bootstrap(scores_id, scores_ood, convention, tpr, miss, replicates, seed) -> float64 "
     "(replicates, 6)"},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_metrics(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
