"""Scores for networks whose classes are texts, such as CLIP: features are image embeddings, and the rows of W
are text embeddings of the classes. MCM and NegLabel."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from dice import _core
from dice.arrays import Array, as_array, blocks, unit_rows
from dice.detectors.checks import check_layer, finite, positive, real, whole
from dice.detectors.head import HeadScore
from dice.errors import InputError

__all__ = ["MCM", "NegLabel", "select_negatives"]


class MCM(HeadScore):
    """Maximum concept matching (Ming et al., NeurIPS 2022, arXiv 2211.13445): max softmax(cos(h, w_c) / T).

    W (C, D) are the text embeddings of the classes, of any norm; b is not read. T = 1 on plain cosines,
    without CLIP's factor of 100, is the authors' (deeplearning-wisc/MCM, utils/detection_util.py:225-248).
    For any other classifier this is MSP of the cosines between features and weights. A feature of zeros has
    cosine 0.
    """

    needs_fit = False

    def __init__(self, W: Any, b: Any, T: float = 1.0) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.T = T

    def _check(self) -> None:
        super()._check()
        positive(self.T, "T")

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        cosines = self._cached("cosines", lambda: _cosines(self._layer()[0]), from_parameters=True)
        return _core.score("msp", _cosines_of(cosines, h), None, (), (1 / positive(self.T, "T"),))


class NegLabel(HeadScore):
    """Negative labels (Jiang et al., ICLR 2024, arXiv 2403.20078): the share of the classes in a softmax over
    them and `negatives`, texts that are like none of them; the mean over `groups` of negatives.

    W (C, D) and `negatives` (K, D) are text embeddings, of any norm; b is not read. K / groups negatives that
    follow each other are a group; those left over are not used. Cosines are divided by T = 0.01, and there
    are 100 groups, as in the authors' code (XueJiang16/NegLabel, clip_ood.py:25-64), which permutes the
    negatives first. `select_negatives` finds negatives among many texts.
    """

    needs_fit = False

    def __init__(self, W: Any, b: Any, negatives: Any, groups: int = 100, T: float = 0.01) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.negatives = negatives
        self.groups = groups
        self.T = T

    def _model(self) -> tuple[_core.Linear, _core.Linear, int]:
        """The cosines with the classes and with the negatives used; how many of these a group has."""
        negatives, groups = self._negatives()
        size = len(negatives) // groups
        return _cosines(self._layer()[0]), _cosines(negatives[: size * groups]), size

    def _negatives(self) -> tuple[Array, int]:
        """The negatives (K, D), and how many groups they make."""
        negatives = as_array(self.negatives, "negatives", 2)
        weight, groups = self._layer()[0], whole(self.groups, "groups")
        if negatives.shape[1] != weight.shape[1]:
            raise InputError(f"negatives: got {negatives.shape[1]} features, W has {weight.shape[1]}")
        if len(negatives) < groups:
            raise InputError(
                f"negatives: got {len(negatives)}, want at least one for each of {groups} groups"
            )
        return negatives, groups

    def _check(self) -> None:
        super()._check()
        positive(self.T, "T")
        finite(self._negatives()[0], "negatives")

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        classes, negatives, size = self._cached("model", self._model, from_parameters=True)
        t = positive(self.T, "T")
        with_classes, with_negatives = (
            _cosines_of(each, h).astype(np.float64) / t for each in (classes, negatives)
        )
        ours = logsumexp(with_classes, axis=1, keepdims=True)
        theirs = logsumexp(with_negatives.reshape(len(h), -1, size), axis=2)
        score: NDArray[np.float64] = expit(ours - theirs).mean(axis=1)
        return score


def select_negatives(
    W: Any, candidates: Any, *, share: float = 0.15, quantile: float = 0.95
) -> NDArray[np.int64]:
    """Which of `candidates` (K, D), text embeddings, to take as negatives for the classes W (C, D): int64,
    least like the classes first.

    A text is as like the classes as the `quantile` of its cosines with them; the `share` of the texts least
    like them is taken. The defaults are the authors'.
    """
    classes, texts = unit_rows(as_array(W, "W", 2), "W"), as_array(candidates, "candidates", 2)
    if texts.shape[1] != classes.shape[1]:
        raise InputError(f"candidates: got {texts.shape[1]} features, W has {classes.shape[1]}")
    if not (0 < real(share, "share") <= 1 and 0 <= real(quantile, "quantile") <= 1):
        raise InputError(f"share, quantile: got {share} and {quantile}, want shares from 0 to 1")
    if not (len(classes) and len(texts)):
        raise InputError(f"W, candidates: got {len(classes)} and {len(texts)} texts, want some of each")
    turned = np.ascontiguousarray(classes.T)
    likeness = [
        np.quantile(_core._blas_gemm(unit_rows(block, "candidates"), turned), quantile, axis=1)
        for block in blocks(texts, np.float64)
    ]
    order = np.argsort(np.concatenate(likeness), kind="stable")
    return order[: max(1, int(len(order) * share))].astype(np.int64)


def _cosines(rows: Any) -> _core.Linear:
    """The products with unit `rows` (K, D), packed."""
    unit = unit_rows(np.asarray(rows)).astype(np.float32)
    return _core.Linear(unit, np.zeros(len(unit), np.float32))


def _cosines_of(rows: _core.Linear, h: np.ndarray) -> NDArray[np.float32]:
    """float32 (n, K): cosines of features `h` (n, D) with the rows."""
    cosines: NDArray[np.float32] = rows.forward(unit_rows(h).astype(np.float32), np.inf, "logits")[0]
    return cosines
