"""Detectors: fit on training features, score features, decide. All follow scikit-learn's outlier conventions.

Scores of logits take z (N, C), all others features h (N, D); `registry` is the table of them with the published parameters.
"""

from dice.detectors._bank import KNN, NNGuide, Relation
from dice.detectors._base import Detector
from dice.detectors._dice import DICE
from dice.detectors._gaussian import RMDS, Mahalanobis
from dice.detectors._head import FDBD, NCI, SHE, GradNorm
from dice.detectors._last_layer import LastLayer
from dice.detectors._logits import GEN, MSP, Energy, Entropy, MaxLogit, TempScale
from dice.detectors._subspace import Residual, ViM
from dice.detectors._typical import KLM, OpenMax
from dice.detectors._weiper import WeiPer

__all__ = [
    "DICE", "FDBD", "GEN", "KLM", "KNN", "MSP", "NCI", "RMDS", "SHE", "Detector", "Energy", "Entropy", "GradNorm", "LastLayer",
    "Mahalanobis", "MaxLogit", "NNGuide", "OpenMax", "Relation", "Residual", "TempScale", "ViM", "WeiPer",
]  # fmt: skip
