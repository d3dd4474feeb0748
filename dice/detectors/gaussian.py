"""Distances to Gaussians fitted to the training features: Mahalanobis and its relative form."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dice import _core
from dice.arrays import on_gpu, unit_rows
from dice.detectors.base import Detector
from dice.detectors.checks import in_range, named_labels, scored, truth
from dice.errors import InputError
from dice.io.schema import Unfit, instance, restore
from dice.stats.moments import ClassMoments
from dice.stats.training import Statistics

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RMDS", "SSD", "Mahalanobis", "NamedClasses"]


class NamedClasses:
    """Means of classes of any names, and the scatter of features within them. Two merge, whatever classes
    each has.

    Attributes: `names` (K,), sorted; `moments` of class k, whose name is `names[k]`.
    """

    def __init__(self, names: np.ndarray, moments: ClassMoments) -> None:
        self.names = names
        self.moments = moments

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what such an object holds."""
        restore(self, state, names=instance(np.ndarray), moments=instance(ClassMoments))
        names, count = self.names, self.moments.count
        if names.shape != count.shape or not (names[:-1] < names[1:]).all():
            raise Unfit(f"NamedClasses.names: want {len(count)} rising names")

    def check(self) -> None:
        """InputError where there is no image, or no scatter."""
        count, _, scatter = self.moments.state
        if scatter is None or not count.any():
            raise InputError("ClassMoments: want some images and their scatter; fit anew")

    @property
    def features(self) -> int:
        """D."""
        return self.moments.features

    def empty(self) -> "NamedClasses":
        """A new one, without classes."""
        moments = ClassMoments(0, self.features, scatter=self.moments.state[2] is not None)
        return NamedClasses(self.names[:0], moments)

    @staticmethod
    def of(h: np.ndarray, labels: Any, *, scatter: bool) -> "NamedClasses":
        """Those of features `h` (N, D), of any float type, with labels (N,) of any kind."""
        names, index = np.unique(named_labels(labels, len(h)), return_inverse=True)
        moments = ClassMoments(len(names), h.shape[1], scatter=scatter)
        return NamedClasses(names, moments.add(h, index.astype(np.int64)))

    def merge(self, other: "NamedClasses") -> None:
        """Adds what `other` has seen; it stays as it is."""
        known = np.union1d(self.names, other.names)
        mine, theirs = (
            each.moments.place(np.searchsorted(known, each.names), len(known)) for each in (self, other)
        )
        self.names, self.moments = known, mine.merge(theirs)


class Mahalanobis(Detector):
    """-min over classes c of (h - mu_c)' S^-1 (h - mu_c) (Lee et al., NeurIPS 2018, arXiv 1807.03888, eq. 2).

    S is the one covariance of all training images about the means of their classes (over N, as the maximum
    likelihood has it). Without labels all images are one class. One pass, mergeable; memory K D + D D
    doubles.

    A singular S is inverted as by scipy.linalg.pinvh, which OpenOOD takes: eigenvalues up to D eps of the
    largest are left out, so what lies outside the span of the training images costs nothing. Classes without
    an image do not count. OpenOOD's MDS is the same; pytorch-ood sums where S is a mean (a score 2 N times
    smaller) and adds 1e-6 to its diagonal. Libraries that invert S in float32 leave out more where it is
    ill-conditioned: oodeel drops 203 of the 342 eigenvalues of a CIFAR-10 DenseNet (Spearman correlation of
    the scores: 0.93), and vim's ranks correlate at 0.87. The paper's weighting of several layers and its
    input perturbation are left out, as in OpenOOD and pytorch-ood.

    normalize=True divides features by their norms first: Mahalanobis++ (Mueller & Hein, ICML 2025, arXiv
    2505.18032). A feature of zeros stays zeros. Features must then be in host memory.

    device="cuda" ("cuda:1") computes the distances there, in double, by cuBLAS where it is found; features
    that live there are scored where they are.

    Attributes: `classes_` (K,), the labels seen; `means_`, `covariance_`.
    """

    needs_labels = True
    fit_depends_on = ("normalize",)
    saved_classes = (NamedClasses, ClassMoments)

    def __init__(self, device: str = "cpu", normalize: bool = False) -> None:
        self.device = device
        self.normalize = normalize

    @property
    def learns_statistics(self) -> bool:
        """Whether all that it learns is in `dice.stats.training.Statistics`, which has no unit features."""
        return not self.normalize

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D) with labels `y` (N,) of any kind; None = all one class."""
        array = self._checked(h)
        labels = np.zeros(len(array), np.int64) if y is None else y
        batch = NamedClasses.of(self._prepared(array), labels, scatter=True)
        found = self._state_to_extend(NamedClasses, batch.empty)
        found.merge(batch)
        self._state = found
        return self

    def _prepared(self, h: Any) -> Any:
        """`h`, normalised where that is asked for."""
        if not truth(self.normalize, "normalize"):
            return h
        if on_gpu(h):
            raise InputError("h: lives on a GPU, which normalize=True does not take; copy it to the host")
        return unit_rows(h)

    def _state_in(self, found: Statistics) -> NamedClasses:
        every, _ = found.by_label()
        return NamedClasses(*every.present())

    def _check(self) -> None:
        super()._check()
        truth(self.normalize, "normalize")
        if self._state is not None:
            self._fitted_state(NamedClasses).check()

    def _moments(self) -> ClassMoments:
        return self._fitted_state(NamedClasses).moments

    @property
    def classes_(self) -> np.ndarray:
        """(K,): the labels seen, sorted."""
        return self._fitted_state(NamedClasses).names

    @property
    def means_(self) -> NDArray[np.float64]:
        """float64 (K, D): the mean feature of each of `classes_`."""
        return self._moments().mean

    @property
    def covariance_(self) -> NDArray[np.float64]:
        """float64 (D, D): S."""
        moments = self._moments()
        covariance: NDArray[np.float64] = moments.scatter()[0] / moments.count.sum()
        return covariance

    def shortfall(self) -> str:
        moments = self._moments()
        images, classes = int(moments.count.sum()), len(moments.count)
        if images - classes >= moments.features:
            return ""
        seen = f"{images} images in {classes} classes"
        return f"{seen} leave the covariance of {moments.features} features singular"

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(NamedClasses)
        return self._score_block(h) if on_gpu(h) else scored(self._score_block, self._checked(h))

    def _score_block(self, h: Any) -> NDArray[np.float64]:
        return -self._distance(h, total=False)

    def _distance(self, h: Any, *, total: bool) -> NDArray[np.float64]:
        """float64 (n,): the least distance to a class; `total`: to the one Gaussian of all images."""
        gaussian = self._cached(
            f"gaussian {total}", lambda: _core.Gaussian(self._moments().state, total, self._device())
        )
        return in_range(gaussian.distance(self._prepared(h)))


class RMDS(Mahalanobis):
    """-min over classes c of (M_c - M_0) (Ren et al., 2021, arXiv 2106.09022, eq. 2).

    M_c is the Mahalanobis distance to class c, M_0 that to the one Gaussian of all training images. Fitted as
    `Mahalanobis` is: the covariance of all images is the classes' and what lies between their means.
    OpenOOD's is the same; pytorch-ood's two covariances are sums, not means (a score N times smaller), with
    1e-6 on their diagonals.
    """

    def _score_block(self, h: Any) -> NDArray[np.float64]:
        return self._distance(h, total=True) - self._distance(h, total=False)


class SSD(Mahalanobis):
    """The Mahalanobis distance of unit features to the one Gaussian of all training images, negated: the
    score of SSD (Sehwag, Chiang & Mittal, ICLR 2021, arXiv 2103.12051) with one cluster, its authors'
    default, on the features of any network.

    The authors (inspire-group/SSD, eval_ssd.py:26-96) also divide by standard deviations, which changes no
    distance under a covariance that can be inverted. Their networks are trained with a contrastive loss; the
    training is not part of this.
    """

    needs_labels = False

    def __init__(self, device: str = "cpu", normalize: bool = True) -> None:
        super().__init__(device, normalize)

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D); labels are not read."""
        return super().partial_fit(h)
