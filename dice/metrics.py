"""How well scores tell in-distribution (ID) from out-of-distribution (OOD) images.

Higher scores mean ID. A number is only comparable under its convention, which is therefore always named:

`paper`  the original DICE code: ID is positive; FPR95 is the share of OOD scores strictly above
         sorted(ID)[round(0.05 N)] with round half to even; AUROC of the exact ROC, tied scores merged; AUIN and AUOUT
         (ID and OOD as the positive class) are trapezoids of precision against recall with the ends precision 0.5 at
         recall 1 and 0 at recall 0; DTERR is the smallest (FN + FP) / N over all thresholds.
"""

from decimal import Decimal
from typing import Any

from dice import _core
from dice.arrays import as_array
from dice.errors import InputError

__all__ = ["CONVENTIONS", "auin", "auout", "auroc", "dterr", "evaluate", "fpr_at_tpr"]

CONVENTIONS = ("paper",)


def evaluate(scores_id: Any, scores_ood: Any, convention: str = "paper") -> dict[str, float]:
    """All metrics of two sets of scores (N,), as fractions: fpr95, auroc, auin, auout, dterr.

    O(N log N). Infinities are scores like others. InputError for NaN, an empty set or an unknown convention.
    """
    names = ("fpr95", "auroc", "auin", "auout", "dterr")
    return dict(zip(names, _measure(scores_id, scores_ood, 0.95, convention), strict=True))


def fpr_at_tpr(scores_id: Any, scores_ood: Any, tpr: float = 0.95, convention: str = "paper") -> float:
    """Share of OOD accepted at the threshold that accepts `tpr` of ID, 0 < tpr <= 1."""
    return _measure(scores_id, scores_ood, tpr, convention)[0]


def auroc(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under the ROC: the chance that an ID score exceeds an OOD score, ties counting half."""
    return _measure(scores_id, scores_ood, 0.95, convention)[1]


def auin(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under precision against recall, ID positive."""
    return _measure(scores_id, scores_ood, 0.95, convention)[2]


def auout(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Area under precision against recall, OOD positive."""
    return _measure(scores_id, scores_ood, 0.95, convention)[3]


def dterr(scores_id: Any, scores_ood: Any, convention: str = "paper") -> float:
    """Smallest detection error (FN + FP) / (N_id + N_ood) over all thresholds."""
    return _measure(scores_id, scores_ood, 0.95, convention)[4]


def _measure(scores_id: Any, scores_ood: Any, tpr: float, convention: str) -> tuple[float, ...]:
    if convention not in CONVENTIONS:
        raise InputError(f"convention: got {convention!r}, want one of {', '.join(CONVENTIONS)}")
    if not 0 < tpr <= 1:
        raise InputError(f"tpr: got {tpr}, want a rate above 0 and at most 1")
    miss = float(1 - Decimal(repr(float(tpr))))  # 1 - 0.95 in binary is not 0.05, and rounds otherwise
    return _core.metric_paper(as_array(scores_id, "scores_id", 1), as_array(scores_ood, "scores_ood", 1), miss)
