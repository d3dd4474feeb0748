"""Graphs and scores where an allocation in C fails: MemoryError, no leak, and the next call is right."""

import numpy as np
import pytest
from test_core_arguments import graph

from dice import _core
from dice.stats.moments import ClassMoments

RNG = np.random.default_rng(0)
W = RNG.standard_normal((20, 300)).astype(np.float32)
B = RNG.standard_normal(20).astype(np.float32)
KEEP = (RNG.random(W.shape) < 0.4).astype(np.uint8)
H = np.maximum(RNG.standard_normal((3, 300)), 0).astype(np.float32)
MEAN = RNG.random(300)


def _moments():
    """Two classes that span two dimensions of nine."""
    return ClassMoments(2, 9, scatter=True).add(W[:4, :9], np.array([0, 0, 1, 1]))


IMAGES = np.ones((2, 3, 8, 8), np.float32)
CALLS = {
    "graph": (20, lambda: _core.Network(graph()).forward(IMAGES)[1].tolist()),
    "percentile": (3, lambda: _core.contribution_percentile(MEAN, W, 90, False)),
    "metrics": (2, lambda: _core.metric_measure(B.astype(float), H[0].astype(float), 0, 0.95, 0.05)),
    "bootstrap": (
        5,
        lambda: _core.metric_bootstrap(B.astype(float), H[0].astype(float), 0, 0.95, 0.05, 3, 7).tolist(),
    ),
    "linear": (3, lambda: _core.Linear(W, B, KEEP).forward(H, np.inf, "energy")[0].tolist()),
    "scalar linear": (
        4,
        lambda: _core.Linear(W, B, KEEP, isa="scalar").forward(H, np.inf, "energy")[0].tolist(),
    ),
    "scores": (1, lambda: _core.score("gen", H, None, (), (0.1, 10)).tolist()),
    "classes": (2, lambda: _moments().mean.tolist()),
    "Gaussian": (8, lambda: _core.Gaussian(_moments().state, False).distance(H[:, :9]).tolist()),
    "singular Gaussian": (8, lambda: _core.Gaussian(_moments().state, True).distance(H[:, :9]).tolist()),
    "klm": (2, lambda: _core.score_klm(H, np.log(np.full((2, 300), 1 / 300))).tolist()),
    "activation": (1, lambda: _core.activate("ash-s", H, 90).tolist()),
    "neighbours": (8, lambda: _core.bank_knn(W, _core.bank_norms(W), H, 3).tolist()),
    "least norm": (2, lambda: _core.least_norm(W.astype(float), B.astype(float), 0)[0].tolist()),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_allocation_may_fail(name):
    least, call = CALLS[name]
    want, live = call(), _core._memory_live()
    failures = 0
    for nth in range(1, 60):
        _core._memory_fail_at(nth)
        try:
            assert call() == want
        except MemoryError:
            failures += 1
        finally:
            _core._memory_fail_at(0)
        assert _core._memory_live() == live
    assert failures >= least
    assert call() == want
