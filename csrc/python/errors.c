/* From status codes to Python exceptions: the one table. */
#include "python/binding.h"

static PyObject *error_class(const char *name)
{
    PyObject *module = PyImport_ImportModule("dice.errors");
    if (module == NULL) {
        return NULL;
    }
    PyObject *found = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return found;
}

int dice_py_check(dice_status status)
{
    PyObject *class = NULL;
    switch (status) {
    case DICE_OK:
        return 0;
    case DICE_E_INPUT:
        class = error_class("InputError");
        break;
    case DICE_E_DEVICE:
        class = error_class("DeviceError");
        break;
    case DICE_E_MEMORY:
        class = Py_NewRef(PyExc_MemoryError);
        break;
    case DICE_E_INTERNAL:
        class = Py_NewRef(PyExc_RuntimeError);
        break;
    }
    if (class != NULL) {
        const char *detail = dice_status_detail();
        /* a detail that was too long may end in the middle of a character */
        PyObject *text = PyUnicode_DecodeUTF8(detail, (Py_ssize_t)strlen(detail), "replace");
        if (text != NULL) {
            PyErr_SetObject(class, text);
            Py_DECREF(text);
        }
        Py_DECREF(class);
    }
    return -1;
}

PyObject *dice_py_result(dice_status status, PyObject *object)
{
    if (object != NULL && dice_py_check(status) < 0) {
        Py_CLEAR(object);
    }
    return object;
}
