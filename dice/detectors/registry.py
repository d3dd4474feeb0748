"""The table of methods, and the names of their classes, which `dice.detectors` exports. The command line, the
documentation, the tests and the benchmark offer what is in the table. How to add a score: CONTRIBUTING.md.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dice.detectors.activations import ASH, SCALE, VRA, Clip
from dice.detectors.bank import KNN, NNGuide, Relation
from dice.detectors.base import Detector
from dice.detectors.class_means import CTM, CADRef
from dice.detectors.dice import DICE
from dice.detectors.gaussian import RMDS, SSD, Mahalanobis
from dice.detectors.head import FDBD, LTS, NCI, SHE, GradNorm
from dice.detectors.last_layer import LastLayer
from dice.detectors.logits import GEN, MSP, Energy, Entropy, MaxLogit, TempScale
from dice.detectors.mixture import GMM
from dice.detectors.optfs import OptFS
from dice.detectors.regret import PNML
from dice.detectors.subspace import KPCA, NECO, Residual, ViM
from dice.detectors.texts import MCM, NegLabel
from dice.detectors.typical import KLM, OpenMax
from dice.detectors.weiper import WeiPer
from dice.errors import InputError

__all__ = [
    "CTM",
    "DICE",
    "FDBD",
    "GEN",
    "GMM",
    "KLM",
    "KNN",
    "KPCA",
    "LTS",
    "MCM",
    "MSP",
    "NCI",
    "NECO",
    "PNML",
    "RMDS",
    "SHE",
    "SSD",
    "CADRef",
    "Energy",
    "Entropy",
    "GradNorm",
    "LastLayer",
    "Mahalanobis",
    "MaxLogit",
    "NNGuide",
    "NegLabel",
    "OpenMax",
    "OptFS",
    "Relation",
    "Residual",
    "TempScale",
    "ViM",
    "WeiPer",
    "METHODS",
    "TableRow",
    "make",
]


@dataclass(frozen=True)
class TableRow:
    """A method: a detector under a name, with its published parameters."""

    name: str
    detector: type[Detector]
    paper: str  #: arXiv number or venue; "" where there is no paper
    parameters: Mapping[str, Any] = field(default_factory=dict)  #: beyond the class's own defaults
    #: further parameters by the name of an ID data set
    by_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def published(self, dataset: str | None = None) -> dict[str, Any]:
        """The parameters for the ID data set `dataset`, or for those without their own."""
        return {**self.parameters, **self.by_dataset.get(dataset or "", {})}

    @property
    def known_parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of the detector's constructor, by name."""
        return inspect.signature(self.detector).parameters

    @property
    def takes(self) -> str:
        """What is fitted and scored: "z" logits, "h" features."""
        return self.detector.takes

    @property
    def needs_head(self) -> bool:
        """Whether it cannot be made without the last layer, W and b. Residual can: its origin is then 0."""
        weight = self.known_parameters.get("W")
        return weight is not None and weight.default is inspect.Parameter.empty

    @property
    def needs_fit(self) -> bool:
        """Whether it learns from training images, with the parameters for data sets without their own."""
        return self.make(None, None, self.parameters).needs_fit

    @property
    def needs_labels(self) -> bool:
        """Whether its fit wants the training images' classes; Mahalanobis and RMDS do without, as one
        class."""
        return self.detector.needs_labels

    def make(self, W: Any, b: Any, parameters: Mapping[str, Any]) -> Detector:
        """The detector with `parameters`, and with the last layer, or its number of classes, where it takes
        that."""
        layer: dict[str, Any] = {"W": W, "b": b} if "W" in self.known_parameters else {}
        if b is not None and "classes" in self.known_parameters and "classes" not in parameters:
            layer["classes"] = len(b)
        return self.detector(**layer, **parameters)


CIFAR10, CIFAR100, IMAGENET = "CIFAR-10", "CIFAR-100", "imagenet"

METHODS: Mapping[str, TableRow] = {
    row.name: row
    for row in [
        TableRow("msp", MSP, "1610.02136"),
        TableRow("maxlogit", MaxLogit, "1911.11132"),
        TableRow("energy", Energy, "2010.03759"),
        TableRow("entropy", Entropy, ""),
        TableRow("tempscale", TempScale, "1706.04599"),
        TableRow("gen", GEN, "CVPR 2023"),
        TableRow("klm", KLM, "1911.11132"),
        TableRow("openmax", OpenMax, "1511.06233"),
        TableRow("mds", Mahalanobis, "1807.03888"),
        TableRow("rmds", RMDS, "2106.09022"),
        TableRow("mds++", Mahalanobis, "2505.18032", {"normalize": True}),
        TableRow("rmds++", RMDS, "2505.18032", {"normalize": True}),
        TableRow("ssd+", SSD, "2103.12051"),
        TableRow("react", LastLayer, "2111.12797", {"activation": Clip()},
                 {IMAGENET: {"activation": Clip(at=1.0)}}),
        TableRow("dice", DICE, "2111.09805", {"p": 90}, {IMAGENET: {"p": 70}}),
        TableRow("dice+react", LastLayer, "2111.09805", {"activation": Clip(at=1.0), "p": 10}),
        # the table of Djurisic et al. as Qinyu-Allen-Zhao/OptFSOOD, detector/__init__.py:32-40, has it;
        # ash-s of CIFAR-100 is the 95 of andrijazz/ash, config, where that table has 90
        TableRow("ash-p", LastLayer, "2209.09858", {"activation": ASH("p", 90)},
                 {CIFAR100: {"activation": ASH("p", 80)}, IMAGENET: {"activation": ASH("p", 60)}}),
        TableRow("ash-b", LastLayer, "2209.09858", {"activation": ASH("b", 95)},
                 {CIFAR100: {"activation": ASH("b", 85)}, IMAGENET: {"activation": ASH("b", 65)}}),
        TableRow("ash-s", LastLayer, "2209.09858", {"activation": ASH("s", 95)},
                 {IMAGENET: {"activation": ASH("s", 90)}}),
        TableRow("scale", LastLayer, "2310.00227", {"activation": SCALE(85)}),
        # zeroQiaoba/VRA, readme.md
        TableRow("vra", LastLayer, "2302.11716", {"activation": VRA(quantiles_=(0.6, 0.95))},
                 {CIFAR10: {"activation": VRA(quantiles_=(0.6, 0.9))},
                  IMAGENET: {"activation": VRA(low=0.5, high=1.0)}}),
        # section 4.1 of the paper; deeplearning-wisc/knn-ood, run_imagenet.py:76
        TableRow("knn", KNN, "2204.06507", {"k": 50}, {CIFAR100: {"k": 200}, IMAGENET: {"k": 1000}}),
        TableRow("vim", ViM, "2203.10807"),
        TableRow("residual", Residual, "2203.10807"),
        TableRow("she", SHE, "ICLR 2023"),
        TableRow("gradnorm", GradNorm, "2110.00218"),
        TableRow("fdbd", FDBD, "2312.11536"),
        TableRow("nnguide", NNGuide, "2309.14888"),
        TableRow("nci", NCI, "2311.01479"),
        TableRow("relation", Relation, "2301.12321"),
        TableRow("weiper", WeiPer, "2405.17164", {},
                 {CIFAR100: {"delta": 2.4, "lambda_1": 0.1, "lambda_2": 1.0, "smooth_copies": 40},
                  IMAGENET: {"delta": 2.4, "lambda_2": 0.25, "smooth": 40}}),
        TableRow("lts", LTS, "2409.01175"),
        TableRow("ctm", CTM, "2306.14920"),
        TableRow("cadref", CADRef, "2503.00325"),
        TableRow("pnml", PNML, "2110.09246"),
        # fanghenshaometeor/ood-kernel-pca, run_detection.sh
        TableRow("kpca", KPCA, "2402.02949", {}, {IMAGENET: {"ratio": 0.99}}),
        TableRow("neco", NECO, "2310.06823"),
        TableRow("gmm", GMM, "2102.11582"),
        TableRow("optfs", OptFS, "ICLR 2024"),
        TableRow("mcm", MCM, "2211.13445"),
    ]
}  # fmt: skip


def make(
    name: str, W: Any = None, b: Any = None, *, dataset: str | None = None, **parameters: Any
) -> Detector:
    """The detector of that row, with the published parameters of the ID data set `dataset` where there are
    any.

    W (C, D) and b (C,) are the last layer, for methods that need it. Further parameters override the table's.
    InputError for an unknown name, a parameter that the method does not have, or W or b missing.

    >>> make("knn", dataset="imagenet"), make("gen", M=10)
    (KNN(k=1000, device='cpu'), GEN(gamma=0.1, M=10, classes=None))
    """
    if name not in METHODS:
        raise InputError(f"method: got {name!r}, want one of {', '.join(METHODS)}")
    row = METHODS[name]
    given = row.published(dataset) | parameters
    known = list(row.known_parameters)
    for parameter in given:
        if parameter not in known:
            raise InputError(f"{parameter}: not a parameter of {name}; it has {', '.join(known)}")
    if row.needs_head and W is None and b is None:
        raise InputError(f"W: not given; {name} wants the last layer")
    return row.make(W, b, given)
