/* Metrics of scores. See ood/metric.h. */
#include "python/binding.h"

#include "ood/metric.h"

static PyObject *metric_paper(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *id_object, *ood_object, *result = NULL;
    double miss;
    if (!PyArg_ParseTuple(args, "OOd", &id_object, &ood_object, &miss)) {
        return NULL;
    }
    PyArrayObject *id = dice_py_array_any(id_object, NPY_FLOAT64, 1, "scores_id");
    PyArrayObject *ood = id == NULL ? NULL : dice_py_array_any(ood_object, NPY_FLOAT64, 1, "scores_ood");
    if (ood != NULL) {
        dice_status status;
        dice_metric m;
        Py_BEGIN_ALLOW_THREADS
        status = dice_metric_paper(PyArray_DATA(id), (size_t)PyArray_SIZE(id), PyArray_DATA(ood),
                                   (size_t)PyArray_SIZE(ood), miss, &m);
        Py_END_ALLOW_THREADS
        result = status != DICE_OK ? dice_py_raise(status)
            : Py_BuildValue("(ddddd)", m.fpr, m.auroc, m.auin, m.auout, m.dterr);
    }
    Py_XDECREF(id);
    Py_XDECREF(ood);
    return result;
}

static PyMethodDef methods[] = {
    {"metric_paper", metric_paper, METH_VARARGS,
     "metric_paper(scores_id, scores_ood, miss) -> (fpr, auroc, auin, auout, dterr)"},
    {NULL, NULL, 0, NULL},
};

int dice_py_add_metrics(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
