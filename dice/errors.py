"""The two exceptions that the package raises on purpose. The C core raises the same classes."""

__all__ = ["DeviceError", "InputError"]


class InputError(ValueError):
    """A file, array, name or value cannot be used. The message names it and says what to do."""


class DeviceError(RuntimeError):
    """A device is missing or ran out of memory. The message says which and why."""
