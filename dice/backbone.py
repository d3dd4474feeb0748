"""Networks with trained weights: from a checkpoint to features and logits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dice import _core
from dice.arrays import Array, Float32, UInt8, refuse_masked
from dice.console import debug
from dice.errors import DeviceError, InputError

__all__ = ["Backbone", "load_backbone"]


class Backbone:
    """A network made ready to run; made by :func:`load_backbone`.

    Attributes:
        arch: name of the architecture, as given or recognised.
        weight, bias: the last layer's W, float32 (C, D), and b, float32 (C,); read-only.
        image_size: side of the images that the network was made for; other sizes work where the network
            allows them.
        mean, std: normalisation of uint8 images, in units of 0..1.
        precision, device, isa: what the network runs with.
        fingerprint: SHA-256 of the checkpoint file, or of the weights that were given, hex.
        class_names: of the C classes in order; None where the checkpoint does not have them.

    A pickle of it names its file, which is read again when the pickle is loaded. It never changes, so that a
    copy is the object itself.
    """

    def __init__(
        self,
        network: _core.Network,
        *,
        device: str,
        fingerprint: str,
        class_names: tuple[str, ...] | None = None,
        source: tuple[Any, ...] | None = None,
    ):
        """source: arch, file and normalize as `load_backbone` takes them; None where it was given arrays."""
        self._network = network
        self._source = source
        self.device = device
        self.fingerprint = fingerprint
        self.class_names = class_names
        self.arch: str = network.arch
        self.weight: Float32 = network.weight
        self.bias: Float32 = network.bias
        self.image_size: int = network.image_size
        self.mean: tuple[float, float, float] = network.mean
        self.std: tuple[float, float, float] = network.std
        self.precision: str = network.precision
        self.isa: str = network.isa

    def features(self, images: UInt8 | Float32) -> Float32:
        """Features of N images, without their logits.

        Args:
            images: uint8 (N, H, W, 3), RGB; or float32 (N, 3, H, W), already normalised.

        Returns:
            h, the pooled penultimate features, float32 (N, D). The bits of an image's row depend neither on
            the other images nor on the number of threads.

        Raises:
            InputError: another dtype or shape, NaN or infinity, or a size that the network does not allow.
        """
        return self._network.features(refuse_masked(images, "images"))

    def logits(self, h: Float32) -> Float32:
        """z = W h + b, float32 (N, C), of features h, float32 (N, D): the bits that `forward` gives for them.

        Raises:
            InputError: another dtype or shape, NaN or infinity.
        """
        (z,) = self._network.linear.forward(h, np.inf, "logits")
        return z

    def forward(self, images: UInt8 | Float32) -> tuple[Float32, Float32]:
        """h, float32 (N, D), and z, float32 (N, C), of N images; see `features` and `logits`."""
        return self._network.forward(refuse_masked(images, "images"))

    def info(self) -> dict[str, Any]:
        """What runs, and the memory it takes, as plain values for reports.

        "algorithms" is a list of (layer, how it is computed). A convolution is "direct" (reads its input in
        place), "packed" (copies it first), "winograd", or "amx" (bfloat16 products on the processor's tile
        unit, in every precision); another layer has the name of its op. The list is empty where the back end
        has one way for each op.
        """
        return {
            "arch": self.arch,
            "precision": self.precision,
            "device": self.device,
            "isa": self.isa,
            "kernels": self._network.kernels,
            "algorithms": self._network.algorithms,
            "image_size": self.image_size,
            "features": self.weight.shape[1],
            "classes": self.weight.shape[0],
            "mean": self.mean,
            "std": self.std,
            "arena_bytes": self._network.arena_bytes,
            "weight_bytes": self._network.weight_bytes + self._network.linear.info()[1],
            "fingerprint": self.fingerprint,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise TypeError(
                "Backbone: cannot be pickled, since it was made of arrays; save them by numpy.savez and load "
                "that file"
            )
        return _load_again, (self.fingerprint, self.device, self.precision, *self._source)

    def __copy__(self) -> Backbone:
        return self

    def __deepcopy__(self, memo: object) -> Backbone:
        return self

    def __repr__(self) -> str:
        classes, features = self.weight.shape
        return (
            f"Backbone({self.arch!r}, {features} features, {classes} classes, {self.precision} on {self.isa})"
        )


def load_backbone(
    arch: str | None,
    file: str | os.PathLike[str] | Mapping[str, Array],
    *,
    device: str = "cpu",
    precision: str = "float32",
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Backbone:
    """Reads a checkpoint and makes its network ready to run.

    Args:
        arch: "densenet", "resnet50", "BiT-S-R101x1", ...: the refusal of an unknown name lists them all. None
            recognises the network by the names and shapes in the file.
        file: torch checkpoint (zip or legacy format) or .npz; no code in it is run. Or the weights,
            name -> array.
        device: "cpu", "cuda" ("cuda:1"), or "auto" for a GPU where one can be used.
        precision: "float32", "bf16x3" or "bf16".
        normalize: (mean, std) of three values each, applied to uint8 images after division by 255;
            None means the architecture's own.

    Raises:
        InputError: the file cannot be read or is another network's; the message names the file and the layer.
        DeviceError: the device is not there.
    """
    from dice.io import fingerprint, read_checkpoint

    try:
        mean, std = (None, None) if normalize is None else normalize
    except (TypeError, ValueError):
        raise InputError(f"normalize: got {normalize!r}, want (mean, std) of three values each") from None
    if isinstance(file, Mapping):
        weights, digest, where, names = dict(file), _digest(file), "weights", None
    else:
        weights, names = read_checkpoint(file)
        digest, where = fingerprint(file), os.fspath(file)
    try:
        graph = _core.build_graph(arch, weights, mean, std)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    del weights  # the graph has its own: two copies are enough while the third is packed
    devices = ["cuda", "cpu"] if device == "auto" else [device]
    for name in devices:
        try:
            network = _core.Network(graph, precision, None, name)
        except DeviceError:
            if name == devices[-1]:
                raise
        else:
            break
    counts = Counter(algorithm for _, algorithm in network.algorithms)
    chosen = ", ".join(f"{count} {algorithm}" for algorithm, count in counts.items())
    debug(f"{network.arch}: {chosen or network.kernels}")
    source = None if isinstance(file, Mapping) else (arch, os.path.abspath(file), (network.mean, network.std))
    if names is not None and len(names) != len(network.bias):
        names = None  # of something else
    return Backbone(network, device=name, fingerprint=digest, class_names=names, source=source)


def _load_again(
    fingerprint: str, device: str, precision: str, arch: str | None, file: str, normalize: tuple[Any, Any]
) -> Backbone:
    """The Backbone of a pickle. InputError where the file is another one now."""
    net = load_backbone(arch, file, device=device, precision=precision, normalize=normalize)
    if net.fingerprint != fingerprint:
        raise InputError(f"{file}: is another network than the one that was pickled")
    return net


def _digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
