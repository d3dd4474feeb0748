"""Arrays in the memory of the emulated device, with the interfaces of cupy, torch and others."""

import ctypes

import numpy as np

_DLPACK_CODES = {"u": 1, "f": 2}


def on_device(library, array):
    """Copy `array` into the memory of the emulated device and return its address there."""
    pointer = ctypes.c_void_p()
    assert library.emulated_malloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
    ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
    return pointer.value


class ByInterface:
    """An array on the device that offers `__cuda_array_interface__`."""

    def __init__(self, library, array, stream=None):
        array = np.ascontiguousarray(array)
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "version": 3,
            "strides": None,
            "data": (on_device(library, array), False),
            "stream": stream,
        }


class _Tensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = (
    ctypes.py_object,
    [ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR],
)


class ByDLPack:
    """An array on the device that offers only DLPack, at a byte offset of 16; counts its uses."""

    def __init__(self, library, array, strides=None):
        array = np.ascontiguousarray(array)
        self.shape, self.asked, self.given_back = array.shape, [], 0
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._strides = None if strides is None else (ctypes.c_int64 * array.ndim)(*strides)
        padded = np.concatenate([np.zeros(16, np.uint8), array.reshape(-1).view(np.uint8)])
        self._tensor = _Tensor(
            data=on_device(library, padded),
            device_type=2,  # kDLCUDA
            device_id=0,
            ndim=array.ndim,
            code=_DLPACK_CODES[array.dtype.kind],
            bits=8 * array.itemsize,
            lanes=1,
            shape=self._shape,
            strides=self._strides,
            byte_offset=16,
        )
        self._destructor = _DESTRUCTOR(self._destroyed)

    def _destroyed(self, _capsule):
        self.given_back += 1

    def __dlpack_device__(self):
        return self._tensor.device_type, self._tensor.device_id

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        return _new_capsule(ctypes.addressof(self._tensor), b"dltensor", self._destructor)
