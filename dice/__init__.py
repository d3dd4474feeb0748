"""dice: out-of-distribution detection on a C core.

Names are loaded on first use, so that ``import dice`` stays cheap.
"""

import importlib
from typing import Any

from dice.version import __version__

_NAMES = {
    "InputError": "dice.errors",
    "DeviceError": "dice.errors",
    "load_backbone": "dice.backbone",
    "Backbone": "dice.backbone",
    "DICE": "dice.detectors.dice",
    "Detector": "dice.detectors.base",
    "fit_and_score": "dice.detectors.fitting",
}
_MODULES = {
    "metrics": "dice.eval.metrics",
    "activations": "dice.detectors.activations",
    "thresholds": "dice.stats.thresholds",
    "detectors": "dice.detectors",
    "datasets": "dice.images.datasets",
}

__all__ = [*_NAMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'dice' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
