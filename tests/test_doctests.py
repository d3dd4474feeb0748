"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import dice

MODULES = [
    m.name
    for m in pkgutil.walk_packages(dice.__path__, "dice.")
    if m.name.split(".")[-1][0] != "_" or ".detectors._" in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_some():
    found = [
        test
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
        if test.examples
    ]
    assert {
        "dice.detectors.base.Detector.save",
        "dice.detectors.dice.DICE",
        "dice.detectors.last_layer.LastLayer",
        "dice.detectors.registry.make",
        "dice.detectors.fitting.fit_and_score",
        "dice.eval.metrics.evaluate",
        "dice.stats.quantiles.QuantileSketch",
        "dice.stats.thresholds.conformal_threshold",
    } <= {test.name for test in found}
