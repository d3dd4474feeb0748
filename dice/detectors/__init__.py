"""Detectors: fit on training features, score features, decide. All follow scikit-learn's outlier conventions."""

from dice.detectors._base import Detector
from dice.detectors._dice import DICE
from dice.detectors._gaussian import RMDS, Mahalanobis
from dice.detectors._logits import GEN, MSP, Energy, Entropy, MaxLogit, TempScale

__all__ = ["DICE", "GEN", "MSP", "RMDS", "Detector", "Energy", "Entropy", "Mahalanobis", "MaxLogit", "TempScale"]
