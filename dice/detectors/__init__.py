"""Detectors: fit on training features, score features, decide. All follow scikit-learn's outlier conventions."""

from dice.detectors._base import Detector
from dice.detectors._dice import DICE

__all__ = ["DICE", "Detector"]
