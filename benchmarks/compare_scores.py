"""Compares every score with its formula in numpy and float64 (`tests/score_formulas.py`) and with
pytorch-ood's, where that is installed: largest difference and rank correlation.

    python benchmarks/compare_scores.py [--shared ../shared]

The features are those of CIFAR-10's test images in the authors' DenseNet, from the shared test material; 800
of them stand for the training set. Differences are relative to the largest score. pytorch-ood's parameters
are ours, its formulas its own: `tests/test_scores_others.py` says how they differ.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
from bench_scores import other  # noqa: E402
from score_cases import fitted, real_case, scored_by  # noqa: E402
from score_formulas import FORMULAS  # noqa: E402

from dice.detectors.registry import METHODS  # noqa: E402


def differences(ours, want):
    """(largest difference over the largest score, Spearman's rank correlation)."""
    return np.abs(ours - want).max() / np.abs(want).max(), spearmanr(ours, want).statistic


def others(name, case):
    """pytorch-ood's scores, higher = ID; None where it has no such score or is not installed."""
    try:
        import torch

        found = other(name, *case.layer32)
    except ImportError:
        return None
    if found is None:
        return None
    _, takes, fit, predict = found
    train, test = case.logits32() if takes == "l" else (case.train32, case.test32)
    if fit is not None:
        fit(torch.from_numpy(train), torch.from_numpy(case.y))
    return -predict(torch.from_numpy(test)).detach().numpy().astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    case = real_case(parser.parse_args().shared)
    warnings.simplefilter("ignore")
    print("| method | formula: difference | Spearman | pytorch-ood: difference | Spearman |")
    print("|---|---|---|---|---|")
    for name in METHODS:
        det = fitted(name, case)
        ours = scored_by(name, det, case)
        cells = ["{:.1e} | {:.6f}".format(*differences(ours, FORMULAS[name](case, det)))]
        theirs = others(name, case)
        cells.append("| " if theirs is None else "{:.1e} | {:.4f}".format(*differences(ours, theirs)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
