"""pNML: the regret of the best guess at the label."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import unit_rows
from dice.detectors.checks import check_layer
from dice.detectors.head import HeadScore
from dice.detectors.subspace import check_scatter
from dice.errors import InputError
from dice.stats.moments import ClassMoments

__all__ = ["PNML"]


class PNML(HeadScore):
    """-log(sum over c of p_c / (p_c + (1 - p_c) p_c^g)) / log C, the regret, negated (Bibas, Feder & Hassner,
    NeurIPS 2021, arXiv 2110.09246, eq. 20).

    p is the softmax of W u + b for the unit feature u = h / norm(h). g says how unlike the training images'
    a = (1, u) is: with G the sum of a a' over them, g = max(a'a - a'G G^+ a, a'G^+ a / (1 + a'G^+ a)). G and
    its pseudo-inverse are double, as in the authors' code (kobybibas/pnml_ood_detection,
    src/score_utils.py:17-88). pytorch-ood leaves out the 1 and inverts in float32, which drops most
    eigenvalues: another score. One pass, mergeable; memory D D doubles. Labels are not needed.
    """

    saved_classes = (ClassMoments,)

    def __init__(self, W: Any, b: Any) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        found = self._state_to_extend(ClassMoments, lambda: ClassMoments(1, h.shape[1], scatter=True))
        self._state = found.add(unit_rows(h), np.zeros(len(h), np.int64))

    def _check(self) -> None:
        super()._check()
        if self._state is not None:
            moments = self._fitted_state(ClassMoments)
            check_scatter(moments)
            scatter, mean = moments.scatter()
            if max(np.linalg.norm(mean), scatter.trace() / moments.count[0]) > 1 + 1e-6:
                raise InputError("ClassMoments: not of unit features; fit anew")

    def shortfall(self) -> str:
        found = self._fitted_state(ClassMoments)
        images = int(found.count[0])
        return "" if images > found.features else f"{images} images do not span {found.features} features"

    def _model(self) -> tuple[_core.Gaussian, float, NDArray[np.float64]]:
        """What gives n a'G^+ a of rows a (N, D + 1); n; and what G does not span, float64 (K, D + 1)."""
        found = self._fitted_state(ClassMoments)
        scatter, mean = found.scatter()
        first = np.concatenate([[1.0], mean])
        n = float(found.count[0])
        second = n * np.outer(first, first)
        second[1:, 1:] += scatter
        about_zero = {"count": np.array([n]), "mean": np.zeros((1, len(first))), "scatter": second}
        state = ClassMoments.from_arrays(len(first), about_zero, scatter=True).state
        values, vectors = _core.eigen(second)
        unseen = values <= len(first) * np.finfo(np.float64).eps * np.abs(values).max()
        return _core.Gaussian(state, False), n, vectors[unseen]

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        gaussian, n, unseen = self._cached("model", self._model)
        u = unit_rows(h)
        a = np.concatenate([np.ones((len(u), 1)), u], axis=1)
        seen = gaussian.distance(a) / n
        g = np.maximum(((a @ unseen.T) ** 2).sum(axis=1), seen / (1 + seen))
        return _core.score("pnml", self._logits(u), g[:, None], (), ())
