"""The table of methods: what the command line, the documentation, the tests and the benchmark offer is read from here.

To add a score: its rule in csrc/ood, its class in dice/detectors, one row below, its formula in tests/score_formulas.py.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dice.detectors._base import Detector
from dice.detectors._dice import DICE
from dice.detectors._gaussian import RMDS, Mahalanobis
from dice.detectors._logits import GEN, MSP, Energy, Entropy, MaxLogit, TempScale
from dice.errors import InputError

__all__ = ["METHODS", "Method", "make"]


@dataclass(frozen=True)
class Method:
    """One row: a named detector with its published parameters."""

    name: str
    detector: type[Detector]
    paper: str  #: arXiv number or venue
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: beyond the class's own defaults
    by_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: and those of a named ID data set

    @property
    def takes(self) -> str:
        """What is fitted and scored: "z" logits, "h" features."""
        return self.detector.takes

    @property
    def needs_head(self) -> bool:
        """Whether it is made from the last layer, W and b."""
        return "W" in inspect.signature(self.detector).parameters

    @property
    def needs_fit(self) -> bool:
        """Whether it learns from training images."""
        return self.detector.needs_fit

    @property
    def needs_labels(self) -> bool:
        """Whether its fit wants the training images' classes; Mahalanobis and RMDS do without, as one class."""
        return self.detector.needs_labels


IMAGENET = "imagenet"

METHODS: Mapping[str, Method] = {
    row.name: row
    for row in [
        Method("msp", MSP, "1610.02136"),
        Method("maxlogit", MaxLogit, "1911.11132"),
        Method("energy", Energy, "2010.03759"),
        Method("entropy", Entropy, ""),
        Method("tempscale", TempScale, "1706.04599"),
        Method("gen", GEN, "CVPR 2023"),
        Method("mds", Mahalanobis, "1807.03888"),
        Method("rmds", RMDS, "2106.09022"),
        Method("dice", DICE, "2111.09805", {"p": 90}, {IMAGENET: {"p": 70}}),
    ]
}


def make(name: str, W: Any = None, b: Any = None, *, dataset: str | None = None, **parameters: Any) -> Detector:
    """The detector of that row, with the published parameters of the ID data set `dataset` where there are any.

    W (C, D) and b (C,) are the last layer, for methods that need it. Further parameters override the table's.
    InputError for an unknown name, a parameter that the method does not have, or W or b missing.
    """
    if name not in METHODS:
        raise InputError(f"method: got {name!r}, want one of {', '.join(METHODS)}")
    row = METHODS[name]
    given = {**row.parameters, **row.by_dataset.get(dataset or "", {}), **parameters}
    known = list(inspect.signature(row.detector).parameters)
    for parameter in given:
        if parameter not in known:
            raise InputError(f"{parameter}: not a parameter of {name}; it has {', '.join(known)}")
    if not row.needs_head:
        return row.detector(**given)
    if W is None or b is None:
        raise InputError(f"{'W' if W is None else 'b'}: not given; {name} wants the last layer")
    return row.detector(W, b, **given)  # type: ignore[call-arg]
