"""Results of evaluations, and the files that keep them: the one place where results become JSON and back.

All metrics are in percent, as in the printed table; `dice.eval.metrics` gives fractions.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dice.arrays import Array, Float64, Int64
from dice.errors import InputError
from dice.eval import metrics
from dice.eval.folders import set_folder
from dice.eval.methods import Method
from dice.io.output import write_json, write_lines

__all__ = [
    "FitNote",
    "Metrics",
    "Provenance",
    "Result",
    "Run",
    "Seconds",
    "SetResult",
    "average",
    "find_runs",
    "save_id_scores",
    "save_ood_scores",
    "save_results",
    "save_run",
]

_RUN, _ID_SCORES, _ID_LABELS, _OOD_SCORES = "run.json", "in_scores.txt", "in_labels.txt", "out_scores.txt"


# -- what is measured


@dataclass(frozen=True)
class Metrics:
    """The metrics of `dice.eval.metrics`.

    autc is None where scores are infinite. tied: how many scores equal the threshold of FPR, see
    `dice.eval.metrics.tied`; None where that is less than `TIES`.
    """

    fpr95: float
    auroc: float
    auin: float
    auout: float
    dterr: float
    autc: float | None = None
    tied: float | None = None

    @property
    def columns(self) -> tuple[float, float, float, float, float]:
        """All but autc, in the order of `dice.eval.metrics.METRICS`."""
        return self.fpr95, self.auroc, self.auin, self.auout, self.dterr

    @classmethod
    def from_columns(
        cls, values: Iterable[float], autc: float | None = None, tied: float | None = None
    ) -> "Metrics":
        fpr95, auroc, auin, auout, dterr = values
        return cls(fpr95, auroc, auin, auout, dterr, autc, tied)

    def to_json(self) -> dict[str, float]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Metrics":
        autc, tied = (None if value.get(key) is None else _number(value[key]) for key in ("autc", "tied"))
        columns = (_number(value[key]) for key in metrics.METRICS)
        return cls.from_columns(columns, autc, tied)


def average(rows: Mapping[str, Metrics], names: Sequence[str] | None = None) -> Metrics:
    """Plain means over the sets `names`, by default all; see `dice.eval.metrics.average`.

    `tied` of a set that has none counts as 0."""
    found = metrics.average({name: row.to_json() for name, row in rows.items()}, names)
    tied = [rows[name].tied for name in (rows if names is None else names)]
    known = [share for share in tied if share is not None]
    return Metrics(**found, tied=sum(known) / len(tied) if known else None)


@dataclass(frozen=True)
class SetResult:
    """One method on one OOD set.

    n: images. measured: None where there are no ID scores to compare with.
    interval95: the lower and the upper ends of the 95 % intervals, None where they were not asked for.
    """

    n: int
    measured: Metrics | None = None
    interval95: tuple[Metrics, Metrics] | None = None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"n": self.n, **dict.fromkeys(metrics.METRICS)}
        if self.measured:
            row |= self.measured.to_json()
        if self.interval95:
            low, high = (end.columns for end in self.interval95)
            row["interval95"] = {key: [low[i], high[i]] for i, key in enumerate(metrics.METRICS)}
        return row

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SetResult":
        measured = None if value["fpr95"] is None else Metrics.from_json(value)
        interval = value.get("interval95")
        if interval is None:
            return cls(int(value["n"]), measured)
        ends = [[_number(end) for end in interval[key]] for key in metrics.METRICS]
        low, high = map(Metrics.from_columns, zip(*ends, strict=True))
        return cls(int(value["n"]), measured, (low, high))


# -- one method on one ID set


@dataclass(frozen=True)
class FitNote:
    """Which training images a method was fitted on.

    set, identity: the training set; split: which of its images; n: how many.
    learnt: the single numbers that were found. short_of: what the fit was short of, "" where it had enough.
    Both are None for DICE, which takes the images' mean feature.
    """

    set: str
    split: str
    n: int
    identity: str
    learnt: dict[str, float] | None = None
    short_of: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "FitNote":
        set_, split, n, identity = (value[key] for key in ("set", "split", "n", "identity"))
        learnt = value.get("learnt")
        found = None if learnt is None else {key: _number(number) for key, number in learnt.items()}
        return cls(set_, split, n, identity, found, value.get("short_of"))


@dataclass(frozen=True)
class Seconds:
    """The time of an evaluation: loading and decoding; the backbone; fits, scores and metrics; everything."""

    load: float
    backbone: float
    head: float
    total: float


@dataclass(frozen=True)
class Result:
    """One method on one ID set, against all OOD sets.

    n_id: ID images. accuracy: percent of them that the network puts into their class; None without labels.
    sets: by name, in the order of the evaluation. skipped: the reason for each other OOD set asked for.
    average: over all sets that are measured, None without any.
    images_per_s: of the backbone; None where all features were stored.
    parameters: those of the detector; None for a score of the original, which `method` describes in full.
    fit: None where the method does not learn.
    left_out: by label, the reason for each method that was asked for and has no result.
    groups: averages over the "near" and the "far" sets; None where no near-OOD sets were named.
    random_weights: the weights are made up and the numbers mean nothing.
    """

    method: Method
    precision: str
    device: str
    isa: str
    convention: str
    in_dataset: str
    checkpoint: str
    n_id: int
    accuracy: float | None
    sets: dict[str, SetResult]
    skipped: dict[str, str]
    average: Metrics | None
    seconds: Seconds
    images_per_s: float | None
    parameters: dict[str, Any] | None = None
    fit: FitNote | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Metrics] | None = None
    random_weights: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "p": self.method.p,
            "clip": self.method.clip,
            **({} if self.parameters is None else {"parameters": self.parameters}),
            **({} if self.fit is None else {"fit": self.fit.to_json()}),
            "precision": self.precision,
            "device": self.device,
            "isa": self.isa,
            "convention": self.convention,
            "in_dataset": self.in_dataset,
            "checkpoint": self.checkpoint,
            "n_id": self.n_id,
            "accuracy": self.accuracy,
            "sets": {name: row.to_json() for name, row in self.sets.items()},
            "skipped": self.skipped,
            **({"left_out": self.left_out} if self.left_out else {}),
            "average": None if self.average is None else self.average.to_json(),
            **(
                {}
                if self.groups is None
                else {"groups": {k: row.to_json() for k, row in self.groups.items()}}
            ),
            "seconds": asdict(self.seconds),
            "images_per_s": self.images_per_s,
            **({"weights": "random"} if self.random_weights else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Result":
        """KeyError, TypeError, ValueError or AttributeError where `value` is not what `to_json` gives."""
        p, clip, accuracy, average = (value[key] for key in ("p", "clip", "accuracy", "average"))
        fit, groups = value.get("fit"), value.get("groups")
        return cls(
            method=Method(
                value["method"],
                None if p is None else _number(p),
                None if clip is None else _number(clip),
            ),
            precision=value["precision"],
            device=value["device"],
            isa=value["isa"],
            convention=value["convention"],
            in_dataset=value["in_dataset"],
            checkpoint=value["checkpoint"],
            n_id=int(value["n_id"]),
            accuracy=None if accuracy is None else _number(accuracy),
            sets={name: SetResult.from_json(row) for name, row in value["sets"].items()},
            skipped=dict(value["skipped"]),
            average=None if average is None else Metrics.from_json(average),
            seconds=Seconds(**value["seconds"]),
            images_per_s=value["images_per_s"],
            parameters=value.get("parameters"),
            fit=None if fit is None else FitNote.from_json(fit),
            left_out=dict(value.get("left_out", {})),
            groups=None if groups is None else {key: Metrics.from_json(row) for key, row in groups.items()},
            random_weights=value.get("weights") == "random",
        )


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value


# -- files


@dataclass(frozen=True)
class Provenance:
    """What a result came from.

    dice: the version. identities: of the ID set and of all OOD sets, by name. mean_sha256: of the mean
        feature, None without one.
    """

    dice: str
    checkpoint_sha256: str
    identities: dict[str, str]
    mean_sha256: str | None = None


@dataclass(frozen=True)
class Run:
    """One method's saved result, and the folder that it is in with the scores."""

    folder: Path
    result: Result
    provenance: Provenance

    def id_scores(self) -> Float64:
        """float64 (N,)"""
        return _read_scores(self.folder / _ID_SCORES)

    def ood_scores(self, name: str) -> Float64:
        """float64 (N,) of the OOD set `name`."""
        identity = self.provenance.identities[name]
        return _read_scores(self.folder / set_folder(name, identity) / _OOD_SCORES)


def save_results(path: Path, results: Sequence[Result]) -> None:
    """The file of --json."""
    write_json(path, [result.to_json() for result in results])


def save_run(folder: Path, result: Result, provenance: Provenance) -> None:
    write_json(folder / _RUN, {**result.to_json(), **asdict(provenance)})


def save_id_scores(folder: Path, scores: Float64, labels: Int64, predicted: Int64, confidence: Array) -> None:
    """Writes, of the ID images, (N,) each: in_scores.txt; label, class and probability in in_labels.txt."""
    rows = zip(labels, predicted, confidence, strict=True)
    write_lines(folder / _ID_LABELS, [f"{label} {guess} {share:.9g}" for label, guess, share in rows])
    write_lines(folder / _ID_SCORES, [repr(float(score)) for score in scores])


def save_ood_scores(folder: Path, name: str, identity: str, scores: Float64) -> None:
    """Writes the scores (N,) of the OOD set `name`."""
    lines = [repr(float(score)) for score in scores]
    write_lines(folder / set_folder(name, identity) / _OOD_SCORES, lines)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The saved runs that `paths` are or hold, each once. InputError where a path has none or one is bad."""
    found: dict[Path, Run] = {}
    for path in paths:
        files = sorted(path.rglob(_RUN)) if path.is_dir() else [path]
        if not files:
            raise InputError(
                f"{path}: no run.json in it; give folders that `dice eval` wrote under --base-dir"
            )
        for file in files:
            found.setdefault(file.resolve(), _read_run(file))
    return list(found.values())


def _read_run(file: Path) -> Run:
    try:
        value = json.loads(file.read_text("utf-8"))
        result = Result.from_json(value)
        provenance = Provenance(
            value["dice"], value["checkpoint_sha256"], value["identities"], value.get("mean_sha256")
        )
        for name in result.sets:
            provenance.identities[name]
    except OSError as reason:
        raise InputError(f"{file}: cannot be read: {reason.strerror or reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise InputError(
            f"{file}: no run.json of dice, or a damaged one ({reason}); run `dice eval` again"
        ) from None
    return Run(file.parent, result, provenance)


def _read_scores(path: Path) -> Float64:
    try:
        scores = np.array(path.read_text("ascii").split(), np.float64)
    except (OSError, ValueError) as reason:
        raise InputError(f"{path}: scores cannot be read ({reason}); run `dice eval` again") from None
    if not scores.size or not np.isfinite(scores).all():
        raise InputError(f"{path}: no scores, or NaN or infinity among them; run `dice eval` again")
    return scores
