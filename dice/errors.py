"""The two refusals of the package. The C core raises these very classes."""

__all__ = ["DeviceError", "InputError"]


class InputError(ValueError):
    """A file, array, name or value that cannot be used; the message names it and says what to do."""


class DeviceError(RuntimeError):
    """A device that is not there or ran out of memory; the message says which and why."""
