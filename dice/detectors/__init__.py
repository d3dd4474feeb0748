"""Detectors: fit on training features, score features, decide. All follow scikit-learn's outlier conventions.

Scores of logits take z (N, C), all others features h (N, D). `registry` has the table of them with the
published parameters, `fitting` fits many of them in one pass over the features.
"""

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

__all__ = [
    "DICE",
    "FDBD",
    "GEN",
    "KLM",
    "KNN",
    "MSP",
    "NCI",
    "RMDS",
    "SHE",
    "Detector",
    "Energy",
    "Entropy",
    "GradNorm",
    "LastLayer",
    "Mahalanobis",
    "MaxLogit",
    "NNGuide",
    "OpenMax",
    "Relation",
    "Residual",
    "TempScale",
    "ViM",
    "WeiPer",
]
