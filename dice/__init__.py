"""dice: out-of-distribution detection on a C core.

Names are loaded on first use, so that ``import dice`` stays cheap.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "InputError": "dice.errors",
    "DeviceError": "dice.errors",
    "load_backbone": "dice.backbone",
    "Backbone": "dice.backbone",
    "DICE": "dice.detectors",
    "Detector": "dice.detectors",
    "fit_and_score": "dice.detectors.run",
    "metrics": "",
    "activations": "",
    "thresholds": "",
    "detectors": "",
    "datasets": "",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'dice' has no attribute {name!r}")
    home = _HOME[name]
    value = getattr(importlib.import_module(home), name) if home else importlib.import_module(f"dice.{name}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
