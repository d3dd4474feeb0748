"""A back end of one slot, abacus: it computes moments, and the host does all the rest."""

from recipes.addition import Addition, Edit, tests

SOURCE = r"""/* The abacus: moments by plain loops. All other slots are left out. */
#include "backend/backend.h"

static const char *unavailable(void)
{
    return NULL;
}

static dice_status moments(const float *h, size_t n, size_t features, const dice_options *options,
                           double *mean, double *squares, int *negative)
{
    (void)options;
    *negative = 0;
    for (size_t d = 0; d < features; d++) {
        double sum = 0, square = 0;
        for (size_t i = 0; i < n; i++) {
            sum += (double)h[i * features + d];
            *negative |= h[i * features + d] < 0;
        }
        mean[d] = sum / (double)n;
        for (size_t i = 0; i < n; i++) {
            const double away = (double)h[i * features + d] - mean[d];
            square += away * away;
        }
        squares[d] = square;
    }
    return DICE_OK;
}

const dice_backend dice_backend_abacus = {
    .abi = DICE_BACKEND_ABI, .name = "abacus", .unavailable = unavailable, .moments = moments};
"""

TEST = '''"""The abacus computes moments; the host does all the rest for it."""

import argparse

import numpy as np
import pytest
from score_cases import random_case

from dice import DICE, InputError, _core
from dice.cli.flags import add_device
from dice.detectors import KNN, Mahalanobis

RNG = np.random.default_rng(0)


def test_moments():
    h = RNG.standard_normal((50, 7)).astype(np.float32)
    count, mean, squares, negative = _core.device_moments(h, "abacus")
    assert (count, negative) == (50, True)
    np.testing.assert_allclose(mean, h.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(squares, 50 * h.var(0, dtype=np.float64), rtol=1e-12)
    assert _core.device_offers("abacus", "moments") and not _core.device_offers("abacus", "rank")
    with pytest.raises(InputError, match="no statistics of its own"):
        _core.device_rank(np.ones(7), h, 50, False, "abacus")


def test_dice_ranks_by_its_moments():
    case = random_case()
    there, here = (DICE(*case.layer32, 70, device=name).fit(case.train32) for name in ("abacus", "cpu"))
    np.testing.assert_allclose(there.mean_, here.mean_, rtol=1e-12)
    assert np.array_equal(there.keep_, here.keep_)
    assert np.array_equal(there.score_samples(case.test32), here.score_samples(case.test32))


@pytest.mark.parametrize("kind", [KNN, Mahalanobis])
def test_other_detectors_run_on_the_host(kind):
    case = random_case()
    there, here = (kind(device=name).fit(case.train32, case.y) for name in ("abacus", "cpu"))
    assert np.array_equal(there.score_samples(case.test32), here.score_samples(case.test32))


def test_networks_run_on_the_host():
    ops = [{"kind": "conv", "x": 0, "y": 1, "weight": RNG.standard_normal((4, 3, 1, 1)).astype(np.float32)}]
    graphs = ops, []  # with and without an op
    for listed in graphs:
        graph = _core.Graph([{"channels": 3}, {"channels": 4}], listed, 0, len(listed))
        there, here = (_core.Network(graph, device=name) for name in ("abacus", "cpu"))
        x = RNG.standard_normal((2, 3, 5, 5)).astype(np.float32)
        assert there.kernels == here.kernels and np.array_equal(there.maps(x), here.maps(x))


def test_the_command_line_knows_it():
    parser = argparse.ArgumentParser()
    add_device(parser)
    assert parser.parse_args(["--device", "abacus"]).device == "abacus"
'''

ADDITION = Addition(
    recipe="A back end",
    names={"<name>": "abacus"},
    new={"csrc/abacus/backend.c": SOURCE, "tests/test_abacus.py": TEST},
    edits=[
        Edit(
            "csrc/backend/backend.h",
            "extern const dice_backend dice_backend_cpu;\n",
            after="extern const dice_backend dice_backend_abacus;\n",
        ),
        Edit(
            "csrc/backend/registry.c",
            "    const int index = cuda_index(device);\n",
            before="""    if (strcmp(device, "abacus") == 0) {
        *out = &dice_backend_abacus;
        return DICE_OK;
    }
""",
        ),
        Edit("csrc/backend/registry.c", "not one of cpu, cuda, cuda:N", after=", abacus"),
        Edit("dice/cli/flags.py", 'choices=("cpu", "cuda", ', after='"abacus", '),
    ],
    checks=[
        tests("test_abacus.py", "test"),
        tests("test_structure.py", "c_files or c_folders or in_order"),
        tests("test_cuda.py", "unknown_devices"),
    ],
)
