"""Scores against a bank of training features: KNN, NNGuide, Relation. No matrix of images x bank is made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from dice import _core
from dice.detectors.base import Detector
from dice.detectors.checks import MOST_SEED, check_layer, positive, real, scored, whole
from dice.detectors.head import HeadScore
from dice.errors import InputError
from dice.io import schema
from dice.io.schema import Unfit, array, instance, items, restore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["KNN", "Bank", "NNGuide", "Relation"]

BLOCK_BYTES = 32 << 20  # of images scored in one pass over the bank


class Bank:
    """Training features kept as float32 rows, with further values of each row in columns beside them. Two
    banks merge.

    An array that is float32, given whole or in blocks that follow each other, stays where it is,
    memory-mapped or not: the rows are a view of it. `seen` is for a detector that keeps only some images: how
    many it was given.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._parts: list[tuple[np.ndarray, ...]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"seen": self.seen, "_parts": [self.columns()] if self._parts else []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unfit where it is not what `__getstate__` gives."""
        restore(self, state, seen=schema.whole(), _parts=items(items(instance(np.ndarray), 2, 3), 0, 1))
        self._parts = list(self._parts)

    def check(self, classes: int | None = None) -> None:
        """Unfit where nothing can be scored against it: want rows float32 (M, D), M at least 1, a number of
        each float64 (M,) and, with `classes`, float32 (M, classes)."""
        columns = self.columns() if self._parts else ()
        n = len(columns[0]) if columns else 0
        wants = [array("float32", None, None), array("float64", n)]
        wants += [] if classes is None else [array("float32", n, classes)]
        if not n or len(columns) != len(wants):
            raise Unfit(f"Bank: has {n} rows in {len(columns)} columns, want some in {len(wants)}")
        for number, (want, column) in enumerate(zip(wants, columns, strict=True)):
            want(column, f"Bank.columns[{number}]")

    def empty(self) -> "Bank":
        """A new one."""
        return Bank()

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows; each column has one entry a row."""
        self._parts.append(columns)

    def merge(self, other: "Bank") -> None:
        """Adds all that `other` has; it stays as it is."""
        self._parts += other._parts
        self.seen += other.seen

    def columns(self) -> tuple[np.ndarray, ...]:
        """All rows, joined once."""
        if len(self._parts) > 1:
            self._parts = [tuple(joined(column) for column in zip(*self._parts, strict=True))]
        return self._parts[0]

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    @property
    def features(self) -> int:
        """D."""
        return int(self._parts[0][0].shape[1])


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Contiguous arrays as one: a view where they follow each other in the same array, else a copy."""
    owner, begin = _owner(parts[0]), parts[0].ctypes.data
    end = begin
    for part in parts:
        if not (
            len(part) == 0 or part.ctypes.data == end and _owner(part) is owner and part.dtype == owner.dtype
        ):
            return np.concatenate(parts)
        end += part.nbytes
    if not (len(parts[0]) and owner.flags.c_contiguous):
        return np.concatenate(parts)
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    return np.ndarray(shape, owner.dtype, owner, begin - owner.ctypes.data)


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that `array` is a view of, however many views are between."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class KNN(Detector):
    """-(squared distance to the k-th nearest training feature), all of norm 1 (Sun et al., ICML 2022, arXiv
    2204.06507).

    k beyond the bank takes the farthest (the paper: 50 for CIFAR-10, 1000 for ImageNet). Other libraries give
    the distance itself (pytorch-ood) or its square (OpenOOD, faiss): the order is the same. OpenOOD's
    normaliser adds 1e-10 after the division instead of before, which changes no distance. A feature of zeros
    stays zeros.

    The bank is float32; an array that is float32 and C-contiguous is kept as it is, not copied, and may be
    memory-mapped. Neighbours whose order the float32 products leave in doubt are compared in double.

    device="cuda" ("cuda:1") computes the products with the bank there, by cuBLAS where it is found; all else
    is computed on the CPU. So a score differs from the CPU's only where rounding to float32 decides.
    """

    keeps_features = True
    saved_classes = (Bank,)

    def __init__(self, k: int = 50, device: str = "cpu") -> None:
        self.k = k
        self.device = device

    def partial_fit(self, h: Any, y: Any = None) -> "Self":
        """Adds training features `h` (N, D) to the bank."""
        array = np.ascontiguousarray(self._checked(h), dtype=np.float32)
        bank = self._state_to_extend(Bank, Bank)
        bank.add(array, _core.bank_norms(array))
        self._state = bank
        return self

    def shortfall(self) -> str:
        bank = len(self._fitted_state(Bank))
        return f"k={self.k} of a bank of {bank}: the farthest is taken" if self.k > bank else ""

    def _check(self) -> None:
        super()._check()
        whole(self.k, "k")
        if self._state is not None:
            self._fitted_state(Bank).check()

    def score_samples(self, h: Any) -> NDArray[np.float64]:
        """Scores float64 (N,) of features `h` (N, D); higher means in-distribution."""
        self._fitted_state(Bank)
        return scored(self._score_block, self._checked(h), np.float32, BLOCK_BYTES)

    def _score_block(self, h: np.ndarray) -> NDArray[np.float64]:
        bank = self._fitted_state(Bank)
        rows, scale = bank.columns()
        return -_core.bank_knn(rows, scale, h, min(whole(self.k, "k"), len(bank)), self._device())


class NNGuide(HeadScore):
    """LSE(z) times the mean of the K largest <h / norm(h), LSE(z_i) h_i / norm(h_i)> over a bank (Park, Jung
    & Teoh, ICCV 2023, arXiv 2309.14888, eq. 5).

    K = 10 and a bank of a random `fraction` of the training images, 1 % for ImageNet, are the authors'
    (roomo7time/nnguide, configs/detector/nnguide.yaml; OpenOOD: K = 100). Whether an image is
    drawn follows from `seed` and its place in the stream; the first always is. K is at most the bank. OpenOOD
    takes the first batches instead, pytorch-ood all images (fraction=1). OpenOOD's normaliser adds 1e-10 to
    every number after the division: less than the rounding of float32 products. `device` as for KNN.
    """

    fit_depends_on = ("W", "b", "fraction", "seed")
    saved_classes = (Bank,)

    def __init__(
        self, W: Any, b: Any, K: int = 10, fraction: float = 0.01, seed: int = 0, device: str = "cpu"
    ) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.K = K
        self.fraction = fraction
        self.seed = seed
        self.device = device

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        self._check_drawing()
        bank = self._state_to_extend(Bank, Bank)
        draw = np.random.PCG64(whole(self.seed, "seed", 0, MOST_SEED)).advance(bank.seen)
        drawn = np.random.Generator(draw).random(len(h)) < self.fraction
        drawn[: bank.seen == 0] = True
        rows = h[drawn].astype(np.float32)
        bank.add(rows, _core.bank_norms(rows) * _core.score("energy", z[drawn], None, (), (1.0,)))
        bank.seen += len(h)
        self._state = bank

    def _check_drawing(self) -> None:
        if not 0 < real(self.fraction, "fraction") <= 1:
            raise InputError(f"fraction: got {self.fraction!r}, want more than 0 and at most 1")

    def _check(self) -> None:
        super()._check()
        self._check_drawing()
        whole(self.K, "K")
        whole(self.seed, "seed", 0, MOST_SEED)
        if self._state is not None:
            self._fitted_state(Bank).check()

    def shortfall(self) -> str:
        bank = self._fitted_state(Bank)
        if len(bank) >= self.K:
            return ""
        share = f"{100 * self.fraction:g} % of {bank.seen} images"
        return f"K={self.K} of a bank of {len(bank)}, {share}: all are taken"

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        bank = self._fitted_state(Bank)
        rows, scale = bank.columns()
        nearness = _core.bank_guide(rows, scale, h, min(whole(self.K, "K"), len(bank)), self._device())
        return _core.score("energy", z, None, (), (1.0,)) * nearness


class Relation(HeadScore):
    """sum over the bank of v^power where v > threshold, v = max(0, cos(h, h_i)) (p . p_i) (Kim, Jeong & Song,
    NeurIPS 2023, arXiv 2301.12321, eq. 3 and its sum).

    The bank is all training images: M D + M C float32. power is the kernel's exponent (1 as in OpenOOD's
    default). `device` as for KNN.
    """

    keeps_features = True
    fit_depends_on = ("W", "b")
    saved_classes = (Bank,)

    def __init__(
        self, W: Any, b: Any, threshold: float = 0.03, power: float = 1.0, device: str = "cpu"
    ) -> None:
        check_layer(W, b)
        self.W = W
        self.b = b
        self.threshold = threshold
        self.power = power
        self.device = device

    def _add_block(self, h: np.ndarray, z: np.ndarray, y: NDArray[np.int64]) -> None:
        rows = h.astype(np.float32, copy=False)
        bank = self._state_to_extend(Bank, Bank)
        bank.add(rows, _core.bank_norms(rows), self._probabilities(z))
        self._state = bank

    def _check(self) -> None:
        super()._check()
        real(self.threshold, "threshold")
        positive(self.power, "power")
        if self._state is not None:
            self._fitted_state(Bank).check(len(self._layer()[0]))

    @staticmethod
    def _probabilities(z: np.ndarray) -> NDArray[np.float32]:
        p: NDArray[np.float32] = softmax(z.astype(np.float64), axis=1).astype(np.float32)
        return p

    def _score_block(self, h: np.ndarray, z: np.ndarray) -> NDArray[np.float64]:
        rows, scale, p = self._fitted_state(Bank).columns()
        least, power = real(self.threshold, "threshold"), positive(self.power, "power")
        return _core.bank_relation(rows, scale, p, h, self._probabilities(z), least, power, self._device())
