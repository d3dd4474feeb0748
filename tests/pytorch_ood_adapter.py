"""A detector of dice with the calling convention of pytorch-ood's, in numpy: its methods, its direction of
the score, its exceptions, its labels below 0."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dice.detectors.registry import make
from dice.errors import InputError


class RequiresFittingException(Exception):
    """Scores were asked for before a fit."""


class ModelNotSetException(ValueError):
    """Inputs were given, and no model to map them to what the detector takes."""


class Adapter:
    """The method `name` of the registry, with its parameters. Scores are high where out-of-distribution.

    `model` maps inputs to logits or to features, whichever the method takes; `fit` and `predict` go through
    it. Logits may be maps (N, C, H, W): every pixel is scored, (N, H, W). Feature maps (N, D, H, W) are
    pooled to their means, which is what dice's rules of activations act on. In a fit, samples with a label
    below 0 are left out.
    """

    def __init__(
        self, name: str, W: Any = None, b: Any = None, model: Callable | None = None, **parameters: Any
    ):
        self.detector = make(name, W, b, **parameters)
        self.model = model

    @property
    def requires_fit(self) -> bool:
        """Whether `predict` wants a fit."""
        return self.detector.needs_fit

    def fit(self, loader: Iterable) -> "Adapter":
        """Fits on the batches (x, y) of `loader`."""
        batches = [(self._through_model(x), y) for x, y in loader]
        x, y = (np.concatenate(column) for column in zip(*batches, strict=True))
        return self._fit(x, y)

    def predict(self, x: Any) -> np.ndarray:
        """Scores of inputs."""
        x = self._through_model(x)
        return self.predict_logits(x) if self.detector.takes == "z" else self.predict_features(x)

    __call__ = predict

    def fit_logits(self, z: Any, y: Any) -> "Adapter":
        """Fits on logits (N, C) with labels (N,)."""
        return self._only("z")._fit(z, y)

    def fit_features(self, h: Any, y: Any = None) -> "Adapter":
        """Fits on features (N, D) with labels (N,)."""
        return self._only("h")._fit(h, y)

    def fit_feature_maps(self, maps: Any, y: Any = None) -> "Adapter":
        """Fits on feature maps (N, D, H, W) with labels (N,)."""
        return self.fit_features(maps.mean(axis=(2, 3)), y)

    def predict_logits(self, z: Any) -> np.ndarray:
        """Scores (N,) of logits (N, C), or (N, H, W) of (N, C, H, W)."""
        pixels = np.moveaxis(z, 1, -1)
        return self._only("z")._score(pixels.reshape(-1, pixels.shape[-1])).reshape(pixels.shape[:-1])

    def predict_features(self, h: Any) -> np.ndarray:
        """Scores (N,) of features (N, D)."""
        return self._only("h")._score(h)

    def predict_feature_maps(self, maps: Any) -> np.ndarray:
        """Scores (N,) of feature maps (N, D, H, W)."""
        return self.predict_features(maps.mean(axis=(2, 3)))

    def _through_model(self, x: Any) -> np.ndarray:
        if self.model is None:
            raise ModelNotSetException("no model: give one, or logits or features")
        return self.model(x)

    def _only(self, takes: str) -> "Adapter":
        if self.detector.takes != takes:
            raise TypeError(f"{type(self.detector).__name__} takes {self.detector.takes}, not {takes}")
        return self

    def _fit(self, x: Any, y: Any) -> "Adapter":
        if not self.requires_fit:
            return self
        if y is not None:
            x, y = x[y >= 0], y[y >= 0]
        self.detector.fit(x, y)
        return self

    def _score(self, x: Any) -> np.ndarray:
        try:
            return -self.detector.score_samples(x)
        except InputError as refusal:
            if self.requires_fit and not self.detector.__sklearn_is_fitted__():
                raise RequiresFittingException(str(refusal)) from refusal
            raise
