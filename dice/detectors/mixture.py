"""A Gaussian of its own for every class, mixed by how frequent the classes are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from dice import _core
from dice.arrays import blocks
from dice.detectors.base import Detector
from dice.detectors.checks import finite, float_type, in_range, named_labels, positive, scored
from dice.detectors.subspace import check_scatter
from dice.errors import InputError
from dice.io.schema import Fields, array, either, items, number, text, whole
from dice.stats.moments import ClassMoments

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GMM"]


class ClassGaussians:
    """Mean and scatter of the features of each class, whose names may be of any kind. Two merge.

    Attributes: `names`, a list; `moments`, those of each, of one class.
    """

    def __init__(self, features: int) -> None:
        self.features = features
        self.names: list[Any] = []
        self.moments: list[ClassMoments] = []

    def __getstate__(self) -> dict[str, Any]:
        """With the moments stacked: there may be thousands of classes."""
        classes, features = len(self.names), self.features
        parts = {
            "count": ([each.count for each in self.moments], (classes,)),
            "mean": ([each.mean for each in self.moments], (classes, features)),
            "scatter": ([each.state[2] for each in self.moments], (classes, features, features)),
        }
        stacked = {name: np.array(part, np.float64).reshape(shape) for name, (part, shape) in parts.items()}
        return {"features": features, "names": self.names, **stacked}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Unfit where it is not what `__getstate__` gives."""
        fields = Fields(state, type(self).__name__)
        self.features = fields.take("features", whole(1))
        self.names = list(fields.take("names", items(either(text(), number()))))
        if len(set(self.names)) < len(self.names):
            fields.refuse("names", "a class is named twice")
        shape = (len(self.names), self.features, self.features)
        count = fields.take("count", array("float64", shape[0]))[:, None]
        mean = fields.take("mean", array("float64", *shape[:2]))[:, None]
        scatter = fields.take("scatter", array("float64", *shape))
        fields.refuse_others()
        self.moments = [
            ClassMoments.from_arrays(self.features, {"count": n, "mean": m, "scatter": s}, scatter=True)
            for n, m, s in zip(count, mean, scatter, strict=True)
        ]

    def empty(self) -> "ClassGaussians":
        """A new one of the same D."""
        return ClassGaussians(self.features)

    def of(self, name: Any) -> ClassMoments:
        """The moments of that class, new ones where it is new."""
        if name not in self.names:
            self.names.append(name)
            self.moments.append(ClassMoments(1, self.features, scatter=True))
        return self.moments[self.names.index(name)]

    def merge(self, other: "ClassGaussians") -> None:
        """Adds what `other` has seen; it stays as it is."""
        for name, moments in zip(other.names, other.moments, strict=True):
            self.of(name).merge(moments)


class GMM(Detector):
    """log of the sum over classes c of pi_c N(h; mu_c, S_c + reg I), the density of a mixture with one
    Gaussian a class, as in DDU (Mukhoti et al., CVPR 2023, arXiv 2102.11582) and pytorch-ood (gmm.py).

    pi_c is the share of the class among the training images, S_c its covariance over its number of images.
    Where classes have fewer images than features reg decides the score; `Mahalanobis`, with one covariance
    for all, is then better. Other scores of the name: OpenOOD's fits scikit-learn's mixture to reduced
    features; mueller-mp/maha-norm takes the largest class instead of the sum. One pass, mergeable; memory
    K D D doubles, at most `LARGEST` bytes. Labels may be of any kind.
    """

    needs_labels = True
    saved_classes = (ClassGaussians,)
    LARGEST = 1 << 31

    def __init__(self, reg: float = 1e-6) -> None:
        self.reg = reg

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D) with labels `y` (N,). InputError where the covariances of all
        classes would take more than `LARGEST` bytes."""
        array = self._checked(h)
        labels = named_labels(y, len(array))
        for block in blocks(array, float_type(array)):
            finite(block, "h")  # before a class of it is added
        found = self._state_to_extend(ClassGaussians, lambda: ClassGaussians(array.shape[1]))
        names = np.unique(labels).tolist()
        classes = len(set(found.names) | set(names))
        if classes * array.shape[1] ** 2 * 8 > self.LARGEST:
            raise InputError(
                f"h: {classes} covariances of {array.shape[1]} features take more than {self.LARGEST >> 30} "
                "GiB; Mahalanobis shares one among the classes"
            )
        for name in names:
            of_class = np.ascontiguousarray(array[labels == name])
            found.of(name).add(of_class, np.zeros(len(of_class), np.int64))
        self._state = found
        return self

    def _check(self) -> None:
        super()._check()
        positive(self.reg, "reg")
        if self._state is not None:
            for moments in self._fitted_state(ClassGaussians).moments:
                check_scatter(moments)

    def shortfall(self) -> str:
        found = self._fitted_state(ClassGaussians)
        few = sum(moments.count[0] <= found.features for moments in found.moments)
        if not few:
            return ""
        classes = f"{few} of {len(found.names)} classes"
        return f"{classes} have too few images for {found.features} features: reg decides"

    def _model(self) -> list[tuple[_core.Gaussian, float]]:
        """Of each class: its distances, and the log of its share and of its density's factor."""
        found, reg = self._fitted_state(ClassGaussians), positive(self.reg, "reg")
        images = sum(moments.count[0] for moments in found.moments)
        model = []
        for moments in found.moments:
            scatter, mean = moments.scatter()
            count, features = moments.count, found.features
            scatter[np.diag_indices(features)] += reg * count[0]
            values = _core.eigen(scatter / count[0])[0]
            arrays = {"count": count, "mean": mean[None], "scatter": scatter}
            state = ClassMoments.from_arrays(features, arrays, scatter=True).state
            volume = np.log(values).sum() + features * np.log(2 * np.pi)
            model.append((_core.Gaussian(state, False), float(np.log(count[0] / images) - volume / 2)))
        return model

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(ClassGaussians)
        return scored(self._score_block, self._checked(h))

    def _score_block(self, h: np.ndarray) -> NDArray[np.float64]:
        model = self._cached("model", self._model)
        logs = np.stack([factor - in_range(gaussian.distance(h)) / 2 for gaussian, factor in model])
        score: NDArray[np.float64] = logsumexp(logs, axis=0)
        return score
