"""Distances to Gaussians fitted to the training features: Mahalanobis and its relative form."""

from typing import Any

import numpy as np

from dice import _core
from dice.arrays import on_gpu
from dice.detectors.base import Detector, check_features, scored
from dice.errors import InputError
from dice.stats.moments import ClassMoments

__all__ = ["RMDS", "Mahalanobis"]


class Mahalanobis(Detector):
    """-min over classes c of (h - mu_c)' S^-1 (h - mu_c) (Lee et al., NeurIPS 2018, arXiv 1807.03888, eq. 2).

    S is the one covariance of all training images about the means of their classes (over N, as the maximum likelihood
    has it). Without labels all images are one class. One pass, mergeable; memory K D + D D doubles.

    A singular S is inverted as scipy.linalg.pinvh does, which OpenOOD takes: eigenvalues up to D eps of the largest are
    left out, so what lies outside the span of the training images costs nothing. Classes without an image do not count.
    Peers: OpenOOD's MDS is the same; pytorch-ood sums where S is a mean (a score 2 N times smaller) and adds 1e-6 to its
    diagonal. The paper's weighting of several layers and its input perturbation are left out, as there.

    device="cuda" ("cuda:1") has the distances computed there, in double, by cuBLAS where it is found; features that live
    there are scored where they are.
    """

    needs_labels = True
    classes_: np.ndarray
    _moments: ClassMoments

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def partial_fit(self, h: Any, y: Any = None) -> "Mahalanobis":
        """Adds training features `h` (N, D) with labels `y` (N,) of any kind; None = all one class."""
        array = check_features(self, h, getattr(self, "_moments", None))
        labels = np.zeros(len(array), np.int64) if y is None else np.asarray(y)
        if labels.shape != (len(array),):
            raise InputError(f"y: got shape {labels.shape} for {len(array)} images")
        names, index = np.unique(labels, return_inverse=True)
        fresh = ClassMoments(len(names), array.shape[1], scatter=True).add(array, index.astype(np.int64))
        return self._take(names, fresh)

    def _merge(self, other: Any) -> None:
        if hasattr(other, "_moments"):
            self._take(other.classes_, other._moments)

    def _take(self, names: np.ndarray, moments: ClassMoments) -> "Mahalanobis":
        if hasattr(self, "_moments"):
            known = np.union1d(self.classes_, names)
            mine = self._moments.place(np.searchsorted(known, self.classes_), len(known))
            names, moments = known, mine.merge(moments.place(np.searchsorted(known, names), len(known)))
        self.classes_, self._moments = names, moments
        self.n_features_in_ = moments.features
        self._changed()
        return self

    def _reset(self) -> None:
        for name in ("_moments", "classes_", "n_features_in_"):
            self.__dict__.pop(name, None)

    @property
    def means_(self) -> np.ndarray:
        """float64 (K, D): the mean feature of each of `classes_`."""
        return self._seen().mean

    @property
    def covariance_(self) -> np.ndarray:
        """float64 (D, D): S."""
        moments = self._seen()
        return moments.scatter()[0] / moments.count.sum()

    def shortfall(self) -> str:
        images, features = int(self._seen().count.sum()), self._seen().features
        if images - len(self.classes_) >= features:
            return ""
        return f"{images} images in {len(self.classes_)} classes leave the covariance of {features} features singular"

    def _seen(self) -> ClassMoments:
        if not hasattr(self, "_moments"):
            raise InputError(
                f"{type(self).__name__}: not fitted; call fit(h, y) with training features first"
            )
        return self._moments

    def _distance(self, block: Any, total: bool) -> np.ndarray:
        return self._get(
            f"gaussian {total}", lambda: _core.Gaussian(self._seen().state, total, self._on())
        ).distance(block)

    def score_samples(self, h: Any) -> np.ndarray:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        seen = self._seen()
        return self._score(h) if on_gpu(h) else scored(self._score, check_features(self, h, seen))

    def _score(self, h: Any) -> np.ndarray:
        return -self._distance(h, False)


class RMDS(Mahalanobis):
    """-min over classes c of (M_c - M_0) (Ren et al., 2021, arXiv 2106.09022, eq. 2).

    M_c is the Mahalanobis distance to class c, M_0 that to the one Gaussian of all training images. Fitted as
    `Mahalanobis` is: the covariance of all images follows from the classes' by adding what lies between them. OpenOOD's is
    the same; pytorch-ood's two covariances are sums, not means (a score N times smaller), with 1e-6 on their diagonals.
    """

    def _score(self, h: Any) -> np.ndarray:
        return self._distance(h, True) - self._distance(h, False)
