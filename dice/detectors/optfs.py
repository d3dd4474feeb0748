"""OptFS: features reshaped by a step function that is optimal for the training images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import blocks
from dice.detectors.checks import check_layer, chosen, whole
from dice.detectors.head import HeadScore
from dice.detectors.sample import Thinned
from dice.errors import InputError

__all__ = ["OptFS"]


class OptFS(HeadScore):
    """w_y . f with f = theta(h) h, theta a step function of each feature's value (Zhao et al., ICLR 2024).

    `bins` equal steps lie between the 0.001 and the 0.999 quantile of all training numbers; outside theta is
    0. The height of a step goes with the mean over the training images of w_y . h over the features whose
    values lie in it, where y is the predicted class; the heights' norm is 1000. variant="energy" is the
    authors' other: LSE(W f + b). No labels (Qinyu-Allen-Zhao/OptFSOOD, detector/ours.py:26-128).

    The steps need the range first: an evenly spread sample of up to 2^24 numbers (64 MB) is kept, all images
    up to that. The authors' steps overlap by a rounding, where a number can count twice; here they do not.
    """

    fit_depends_on = ("W", "b")
    saved_classes = (Thinned,)
    KEPT = 1 << 24
    NORM = 1000.0
    MOST = 10_000  # bins

    def __init__(self, W: Any, b: Any, bins: int = 100, variant: str = "predicted") -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.bins = bins
        self.variant = variant

    def _check(self) -> None:
        super()._check()
        self._variant()
        self._steps()
        if self._state is None:
            return
        sample = self._fitted_state(Thinned)
        sample.check(columns=2)
        label, classes = sample.rows()[1], len(self._layer()[0])
        if label.ndim != 1 or label.dtype.kind != "i" or not ((label >= 0) & (label < classes)).all():
            raise InputError(f"Thinned: want predicted classes from 0 to {classes - 1}; fit anew")

    def _variant(self) -> str:
        return chosen(self.variant, "variant", "predicted", "energy")

    def _steps(self) -> int:
        return whole(self.bins, "bins", 1, self.MOST)

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        sample = self._state_to_extend(Thinned, lambda: Thinned(max(1, self.KEPT // h.shape[1])))
        sample.add(h.astype(np.float32), z.argmax(axis=1))
        self._state = sample

    def _model(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Edges (bins + 1,), and theta (bins + 2,): 0 before the first edge and after the last."""
        rows, label = self._fitted_state(Thinned).rows()
        low, high = np.quantile(rows, (0.001, 0.999))
        if not low < high:
            raise InputError("h: the training features do not differ; OptFS has no steps")
        edges = np.linspace(low, high, self._steps() + 1)
        weight, height, first = self._layer()[0], np.zeros(len(edges) + 1), 0
        for block in blocks(rows, np.float64):
            parts = weight[label[first : first + len(block)]] * block
            step = np.searchsorted(edges, block, side="right")
            height += np.bincount(step.ravel(), parts.ravel(), len(height))
            first += len(block)
        height[[0, -1]] = 0
        norm = np.linalg.norm(height)
        return edges, height * (self.NORM / norm if norm > 0 else 0)

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        variant = self._variant()
        edges, theta = self._cached("model", self._model)
        shaped = theta[np.searchsorted(edges, h, side="right")] * h
        if variant == "energy":
            return _core.score("energy", self._logits(shaped), None, (), (1.0,))
        score: NDArray[np.float64] = (self._layer()[0][z.argmax(axis=1)] * shaped).sum(axis=1)
        return score
