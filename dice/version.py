"""The version, for whoever names it in a file: a leaf, so that nobody has to import all of `dice` for it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
