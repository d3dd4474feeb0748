"""The table of methods: what the command line, the documentation, the tests and the benchmark offer is read from here.

To add a score: its rule in csrc/ood, its class in dice/detectors, one row below, its formula in tests/score_formulas.py.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.detectors.bank import KNN, NNGuide, Relation
from dice.detectors.base import Detector
from dice.detectors.dice import DICE
from dice.detectors.gaussian import RMDS, Mahalanobis
from dice.detectors.head import FDBD, NCI, SHE, GradNorm
from dice.detectors.last_layer import LastLayer
from dice.detectors.logits import GEN, MSP, Energy, Entropy, MaxLogit, TempScale
from dice.detectors.subspace import Residual, ViM
from dice.detectors.typical import KLM, OpenMax
from dice.detectors.weiper import WeiPer
from dice.errors import InputError

__all__ = ["METHODS", "Method", "make"]


@dataclass(frozen=True)
class Method:
    """One row: a named detector with its published parameters."""

    name: str
    detector: type[Detector]
    paper: str  #: arXiv number or venue; "" = folklore
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: beyond the class's own defaults
    by_dataset: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  #: and those of a named ID data set

    def published(self, dataset: str | None = None) -> dict[str, Any]:
        """The parameters for the ID data set `dataset`, or for those without their own."""
        return {**self.parameters, **self.by_dataset.get(dataset or "", {})}

    @property
    def takes(self) -> str:
        """What is fitted and scored: "z" logits, "h" features."""
        return self.detector.takes

    @property
    def needs_head(self) -> bool:
        """Whether it cannot be made without the last layer, W and b; Residual can, with another origin."""
        weight = inspect.signature(self.detector).parameters.get("W")
        return weight is not None and weight.default is inspect.Parameter.empty

    @property
    def needs_fit(self) -> bool:
        """Whether it learns from training images, with the table's parameters."""
        if not issubclass(self.detector, LastLayer):
            return self.detector.needs_fit
        return self.parameters.get("p") is not None or bool(self.parameters["activation"].quantiles)

    @property
    def needs_labels(self) -> bool:
        """Whether its fit wants the training images' classes; Mahalanobis and RMDS do without, as one class."""
        return self.detector.needs_labels


CIFAR100, IMAGENET = "CIFAR-100", "imagenet"

METHODS: Mapping[str, Method] = {
    row.name: row
    for row in [
        Method("msp", MSP, "1610.02136"),
        Method("maxlogit", MaxLogit, "1911.11132"),
        Method("energy", Energy, "2010.03759"),
        Method("entropy", Entropy, ""),
        Method("tempscale", TempScale, "1706.04599"),
        Method("gen", GEN, "CVPR 2023"),
        Method("klm", KLM, "1911.11132"),
        Method("openmax", OpenMax, "1511.06233"),
        Method("mds", Mahalanobis, "1807.03888"),
        Method("rmds", RMDS, "2106.09022"),
        Method("react", LastLayer, "2111.12797", {"activation": Clip()}, {IMAGENET: {"activation": Clip(at=1.0)}}),
        Method("dice", DICE, "2111.09805", {"p": 90}, {IMAGENET: {"p": 70}}),
        Method("dice+react", LastLayer, "2111.09805", {"activation": Clip(at=1.0), "p": 10}),
        Method("ash-p", LastLayer, "2209.09858", {"activation": ASH("p", 90)}),
        Method("ash-b", LastLayer, "2209.09858", {"activation": ASH("b", 90)}),
        Method("ash-s", LastLayer, "2209.09858", {"activation": ASH("s", 95)}, {IMAGENET: {"activation": ASH("s", 90)}}),
        Method("scale", LastLayer, "2310.00227", {"activation": SCALE(85)}),
        Method("vra", LastLayer, "2302.11716", {"activation": VRA()}),
        Method("knn", KNN, "2204.06507", {"k": 50}, {IMAGENET: {"k": 1000}}),
        Method("vim", ViM, "2203.10807"),
        Method("residual", Residual, "2203.10807"),
        Method("she", SHE, "ICLR 2023"),
        Method("gradnorm", GradNorm, "2110.00218"),
        Method("fdbd", FDBD, "2312.11536"),
        Method("nnguide", NNGuide, "2309.14888"),
        Method("nci", NCI, "2311.01479"),
        Method("relation", Relation, "2301.12321"),
        Method("weiper", WeiPer, "2405.17164", {},
               {CIFAR100: {"delta": 2.4, "lambda_1": 0.1, "lambda_2": 1.0, "smooth_copies": 40},
                IMAGENET: {"delta": 2.4, "lambda_2": 0.25, "smooth": 40}}),
    ]
}  # fmt: skip


def make(
    name: str, W: Any = None, b: Any = None, *, dataset: str | None = None, **parameters: Any
) -> Detector:
    """The detector of that row, with the published parameters of the ID data set `dataset` where there are any.

    W (C, D) and b (C,) are the last layer, for methods that need it. Further parameters override the table's.
    InputError for an unknown name, a parameter that the method does not have, or W or b missing.

    >>> make("knn", dataset="imagenet"), make("gen", M=10)
    (KNN(k=1000, device='cpu'), GEN(gamma=0.1, M=10))
    """
    if name not in METHODS:
        raise InputError(f"method: got {name!r}, want one of {', '.join(METHODS)}")
    row = METHODS[name]
    given = row.published(dataset) | parameters
    known = list(inspect.signature(row.detector).parameters)
    for parameter in given:
        if parameter not in known:
            raise InputError(f"{parameter}: not a parameter of {name}; it has {', '.join(known)}")
    if row.needs_head and (W is None or b is None):
        raise InputError(f"{'W' if W is None else 'b'}: not given; {name} wants the last layer")
    layer = {"W": W, "b": b} if "W" in known else {}
    return row.detector(**layer, **given)
