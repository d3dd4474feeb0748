"""How well scores tell in-distribution (ID) from out-of-distribution (OOD) images.

Higher scores mean ID. A number is only comparable under its convention, which is therefore always named:

`paper`    the original DICE code. ID is positive; FPR95 is the share of OOD scores strictly above
           sorted(ID)[round(0.05 N)], half to even; AUIN and AUOUT (ID and OOD as the positive class) are
           trapezoids of precision against recall that end in precision 0.5 at recall 1 and 0 at recall 0.
`openood`  OpenOOD v1.5, and pytorch-ood's OODMetrics. OOD is positive: FPR95 is the share of ID rejected
           where 95 % of OOD is caught, which is another number than the paper's; AUIN and AUOUT are
           trapezoids that end in precision 1 at recall 0.
`sklearn`  scikit-learn with ID positive: FPR95 is `fpr[argmax(tpr >= 0.95)]` of `roc_curve`; AUIN and AUOUT
           are `average_precision_score`.

Three metrics are the same under every convention: AUROC, the area under the exact ROC with tied scores
merged; DTERR, the smallest (FN + FP) / N over all thresholds; and AUTC, the area under (FPR + FNR) / 2 over
all thresholds, with scores scaled to [0, 1].
"""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import Array, as_array
from dice.detectors.checks import real
from dice.errors import InputError

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "TIES",
    "auin",
    "auout",
    "auroc",
    "autc",
    "average",
    "bootstrap",
    "check_convention",
    "dterr",
    "evaluate",
    "fpr_at_tpr",
    "tied",
]

CONVENTIONS = ("paper", "openood", "sklearn")  # in the order of dice_metric_convention
METRICS = ("fpr95", "auroc", "auin", "auout", "dterr")
TIES = 0.01  # the share `tied` from which FPR95 says little


def evaluate(scores_id: Any, scores_ood: Any, convention: str = "paper") -> dict[str, float]:
    """All metrics of two sets of scores (N,), as fractions: fpr95, auroc, auin, auout, dterr.

    O(N). Infinities are scores like others. InputError for NaN, an empty set or an unknown convention.

    >>> found = evaluate([4, 3, 2, 1], [0, 0.5, 2.5])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'fpr95': 0.333, 'auroc': 0.833, 'auin': 0.746, 'auout': 0.683, 'dterr': 0.143}
    """
    return dict(zip(METRICS, _measure(scores_id, scores_ood, convention), strict=False))


def fpr_at_tpr(scores_id: Any, scores_ood: Any, tpr: float = 0.95, convention: str = "paper") -> float:
    """The share of OOD accepted where the share `tpr` of ID is accepted, 0 < tpr <= 1.

    Under `openood`: the share of ID rejected where the share `tpr` of OOD is rejected.
    """
    return _measure(scores_id, scores_ood, convention, tpr)[0]


def auroc(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under the ROC: the chance that an ID score exceeds an OOD score, ties counting half."""
    return _measure(scores_id, scores_ood, convention)[1]


def auin(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under precision against recall, ID positive."""
    return _measure(scores_id, scores_ood, convention)[2]


def auout(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under precision against recall, OOD positive."""
    return _measure(scores_id, scores_ood, convention)[3]


def dterr(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Smallest detection error (FN + FP) / (N_id + N_ood) over all thresholds."""
    return _measure(scores_id, scores_ood, convention)[4]


def autc(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under (FPR + FNR) / 2 over all thresholds, with scores scaled to [0, 1]; less is better.

    Humblot-Renaux et al. (2023). The exact integral, not trapezoids between the scores; 0.5 where all scores
    are equal. Unlike the other metrics it depends on how the scores are spaced, not on their order alone.
    InputError for infinite scores.
    """
    value = _measure(scores_id, scores_ood, convention)[5]
    if np.isnan(value):
        raise InputError("scores: hold infinity, which cannot be scaled to [0, 1] for AUTC")
    return value


def bootstrap(
    scores_id: Any,
    scores_ood: Any,
    convention: str = "paper",
    *,
    tpr: float = 0.95,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (Efron, 1979): {metric: (low, high)}, fractions.

    The metrics are those of `evaluate`, where "fpr95" is at `tpr`, and "autc" unless scores are infinite. ID
    and OOD scores are resampled separately, `replicates` times; the share (1 - level) / 2 of the values lies
    beyond each end. The same seed gives the same intervals on every machine and for every number of threads.
    """
    if replicates < 1:
        raise InputError(f"replicates: got {replicates}, want at least 1")
    if not 0 < level < 1:
        raise InputError(f"level: got {level}, want a share strictly between 0 and 1")
    if not 0 <= seed < 1 << 64:
        raise InputError(f"seed: got {seed}, want 0 to 2^64 - 1")
    drawn = _core.metric_bootstrap(*_arguments(scores_id, scores_ood, convention, tpr), replicates, seed)
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0).T.tolist()
    names = METRICS if np.isnan(drawn[0, -1]) else (*METRICS, "autc")
    return {name: (low, high) for name, (low, high) in zip(names, ends, strict=False)}


def tied(scores_id: Any, scores_ood: Any, convention: str = "paper", tpr: float = 0.95) -> float:
    """The share of OOD scores that equal the threshold of `fpr_at_tpr`; under `openood`, of ID scores.

    FPR would differ by that share if ties counted the other way: it is 0 where all scores are equal.
    """
    ids, oods, _, tpr, miss = _arguments(scores_id, scores_ood, convention, tpr)
    counted, ranked = (ids, oods) if convention == "openood" else (oods, ids)
    if not len(counted) or not len(ranked):
        raise InputError("tied: of no scores")
    most = math.ceil(tpr * len(ranked) - 1e-9)
    rank = {"paper": round(miss * len(ranked)), "openood": most - 1, "sklearn": len(ranked) - most}[
        convention
    ]
    rank = min(max(rank, 0), len(ranked) - 1)
    return float(np.mean(counted == np.partition(ranked, rank)[rank]))


def average(rows: Mapping[str, Mapping[str, float]], names: Iterable[str] | None = None) -> dict[str, float]:
    """The plain mean of each metric over OOD sets; that of "autc" only where every set has it.

    rows: {set: metrics as `evaluate` gives them}. names: the sets to average, such as the near-OOD ones;
        default all.
    InputError for a set that is not in `rows`, and where there is none to average.
    """
    chosen = list(rows if names is None else names)
    for name in chosen:
        if name not in rows:
            raise InputError(f"average: {name!r} is not among {', '.join(rows) or 'no sets'}")
    if not chosen:
        raise InputError("average: of no set")
    keys = [key for key in (*METRICS, "autc") if key in METRICS or all(key in rows[name] for name in chosen)]
    return {key: float(np.mean([rows[name][key] for name in chosen])) for key in keys}


def check_convention(convention: str) -> int:
    """The convention's number in the core. InputError for an unknown one."""
    if convention not in CONVENTIONS:
        raise InputError(f"convention: got {convention!r}, want one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS.index(convention)


def _measure(scores_id: Any, scores_ood: Any, convention: str, tpr: float = 0.95) -> tuple[float, ...]:
    return _core.metric_measure(*_arguments(scores_id, scores_ood, convention, tpr))


def _arguments(
    scores_id: Any, scores_ood: Any, convention: str, tpr: float
) -> tuple[Array, Array, int, float, float]:
    number = check_convention(convention)
    if not 0 < real(tpr, "tpr") <= 1:
        raise InputError(f"tpr: got {tpr}, want a rate above 0 and at most 1")
    miss = float(1 - Decimal(repr(float(tpr))))  # 1 - 0.95 in binary is not 0.05, and rounds otherwise
    return as_array(scores_id, "scores_id", 1), as_array(scores_ood, "scores_ood", 1), number, tpr, miss
