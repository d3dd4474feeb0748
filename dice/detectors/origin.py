"""Where a detector in a file comes from, as `dice fit` and `dice merge` write it: `about` in the file,
`about_` of the loaded detector."""

from dataclasses import asdict, dataclass
from typing import Any

from dice.detectors.base import Detector
from dice.errors import InputError
from dice.io import schema
from dice.io.files import PathLike
from dice.io.schema import Fields, Unfit, flag, items, maybe, number, record, table, text, whole
from dice.stats.training import Sample
from dice.version import __version__

__all__ = ["CalibratedOn", "FittedOn", "NetworkOrigin", "Origin", "origin"]


@dataclass(frozen=True)
class NetworkOrigin:
    """The network whose features were learnt from: the file of its checkpoint at that time and the SHA-256 of
    its weights, and how it ran."""

    checkpoint: str
    sha256: str
    arch: str
    precision: str
    device: str
    isa: str

    @classmethod
    def from_json(cls, fields: Fields) -> "NetworkOrigin":
        names = ("checkpoint", "sha256", "arch", "precision", "device", "isa")
        return cls(*(fields.take(name, text()) for name in names))


@dataclass(frozen=True)
class FittedOn:
    """The images that a detector was fitted on.

    set, identity: the image set; split: which of its images; n: how many.
    learnt: the single numbers that were found. short_of: what the fit was short of, "" where it had enough.
    statistics: the file that took the place of images, None without one; sample: what that was of, None for
    all.
    merged: the same of each detector that this one was merged from; () where it was fitted.
    """

    set: str
    split: str
    n: int
    learnt: dict[str, float]
    short_of: str
    identity: str
    statistics: str | None = None
    sample: Sample | None = None
    merged: "tuple[FittedOn, ...]" = ()

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        if self.statistics is None:
            del row["statistics"], row["sample"]
        del row["merged"]
        return row | ({"merged": [each.to_json() for each in self.merged]} if self.merged else {})

    @classmethod
    def from_json(cls, fields: Fields) -> "FittedOn":
        return cls(
            set=fields.take("set", text()),
            split=fields.take("split", text()),
            n=fields.take("n", whole()),
            learnt=fields.take("learnt", table(number())),
            short_of=fields.take("short_of", text()),
            identity=fields.take("identity", text()),
            statistics=fields.take("statistics", maybe(text()), None),
            sample=fields.take("sample", maybe(record(Sample.from_json)), None),
            merged=fields.take("merged", items(record(cls.from_json)), ()),
        )

    def identities(self) -> list[str]:
        """Of the image sets, one where nothing was merged."""
        if not self.merged:
            return [self.identity]
        return [identity for each in self.merged for identity in each.identities()]


@dataclass(frozen=True)
class CalibratedOn:
    """The `n` held-out images that the threshold comes from, and the rate that it keeps, for all of them or
    by predicted class."""

    set: str
    identity: str
    n: int
    tpr: float
    by_class: bool

    @classmethod
    def from_json(cls, fields: Fields) -> "CalibratedOn":
        return cls(
            fields.take("set", text()),
            fields.take("identity", text()),
            fields.take("n", whole()),
            fields.take("tpr", number(0, 1)),
            fields.take("by_class", flag),
        )


@dataclass(frozen=True)
class Origin:
    """Where a detector comes from.

    method: its name in `dice.detectors.registry`. preprocessing: the name of the network's transform.
    in_dataset: the data set whose published parameters it has. mean: the file that gave DICE's mean feature.
    fitted_on, calibrated_on: None where it learnt nothing, or has no threshold.
    dice: the version that wrote the file.
    """

    method: str
    network: NetworkOrigin
    preprocessing: str
    in_dataset: str
    mean: str | None = None
    fitted_on: FittedOn | None = None
    calibrated_on: CalibratedOn | None = None
    dice: str = __version__

    def to_json(self) -> dict[str, Any]:
        """What `Detector.save` takes as `about`; it sets the version of dice."""
        return asdict(self) | {"fitted_on": None if self.fitted_on is None else self.fitted_on.to_json()}

    @classmethod
    def from_json(cls, fields: Fields) -> "Origin":
        return cls(
            method=fields.take("method", text()),
            network=fields.take("network", record(NetworkOrigin.from_json)),
            preprocessing=fields.take("preprocessing", text()),
            in_dataset=fields.take("in_dataset", text()),
            mean=fields.take("mean", maybe(text())),
            fitted_on=fields.take("fitted_on", maybe(record(FittedOn.from_json))),
            calibrated_on=fields.take("calibrated_on", maybe(record(CalibratedOn.from_json))),
            dice=fields.take("dice", text()),
        )


def origin(detector: Detector, path: PathLike) -> Origin:
    """The origin of the detector in the file `path`. InputError where the file was not made by `dice fit`."""
    try:
        return schema.check(getattr(detector, "about_", {}), record(Origin.from_json))
    except Unfit as reason:
        raise InputError(
            f"{path}: does not say where it comes from ({reason}); make it by `dice fit`"
        ) from None
