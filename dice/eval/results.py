"""Results of evaluations, and the files that keep them: the one place where results become JSON and back.

All metrics are in percent, as in the printed table; `dice.eval.metrics` gives fractions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dice.arrays import Array, Float64, Int64
from dice.errors import InputError
from dice.eval import metrics
from dice.eval.folders import set_folder
from dice.eval.methods import Method
from dice.io import schema
from dice.io.files import read_bounded
from dice.io.output import write_json, write_lines
from dice.io.schema import Fields, Unfit, either, items, maybe, number, one_of, record, table, text, whole

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

_PERCENT = number(-1e-6, 100 + 1e-6)  # a sum of shares may round to more than 1
MOST_SCORES = 1 << 28  # bytes of a file of scores
LARGEST_SCORE = 1e100  # their differences can be computed

Parameter: TypeAlias = (
    bool | float | str | None
)  #: of a detector; what is none of these is written as its repr

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
    def from_json(cls, fields: Fields) -> "Metrics":
        columns = [fields.take(key, _PERCENT) for key in metrics.METRICS]
        autc, tied = fields.take("autc", maybe(number()), None), fields.take("tied", maybe(_PERCENT), None)
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
    def from_json(cls, fields: Fields) -> "SetResult":
        n = fields.take("n", whole())
        columns = [fields.take(key, maybe(_PERCENT)) for key in metrics.METRICS]
        ends = fields.take("interval95", maybe(record(_interval_from_json)), None)
        measured = None if columns[0] is None else Metrics.from_json(fields)
        return cls(n, measured, ends)


def _interval_from_json(fields: Fields) -> tuple[Metrics, Metrics]:
    pairs = [fields.take(key, items(_PERCENT, 2, 2)) for key in metrics.METRICS]
    low, high = map(Metrics.from_columns, zip(*pairs, strict=True))
    return low, high


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
    def from_json(cls, fields: Fields) -> "FitNote":
        return cls(
            set=fields.take("set", text()),
            split=fields.take("split", text()),
            n=fields.take("n", whole()),
            identity=fields.take("identity", text()),
            learnt=fields.take("learnt", maybe(table(number())), None),
            short_of=fields.take("short_of", maybe(text()), None),
        )


@dataclass(frozen=True)
class Seconds:
    """The time of an evaluation: loading and decoding; the backbone; fits, scores and metrics; everything."""

    load: float
    backbone: float
    head: float
    total: float

    @classmethod
    def from_json(cls, fields: Fields) -> "Seconds":
        return cls(*(fields.take(stage, number(0)) for stage in ("load", "backbone", "head", "total")))


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
    parameters: dict[str, Parameter] | None = None
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
    def from_json(cls, fields: Fields) -> "Result":
        return cls(
            method=Method(
                fields.take("method", text()),
                fields.take("p", maybe(number(0, 100))),
                fields.take("clip", maybe(number())),
            ),
            precision=fields.take("precision", text()),
            device=fields.take("device", text()),
            isa=fields.take("isa", text()),
            convention=fields.take("convention", one_of(*metrics.CONVENTIONS)),
            in_dataset=fields.take("in_dataset", text()),
            checkpoint=fields.take("checkpoint", text()),
            n_id=fields.take("n_id", whole()),
            accuracy=fields.take("accuracy", maybe(_PERCENT)),
            sets=fields.take("sets", table(record(SetResult.from_json))),
            skipped=fields.take("skipped", table(text())),
            average=fields.take("average", maybe(record(Metrics.from_json))),
            seconds=fields.take("seconds", record(Seconds.from_json)),
            images_per_s=fields.take("images_per_s", maybe(number(0))),
            parameters=fields.take("parameters", maybe(table(_parameter)), None),
            fit=fields.take("fit", maybe(record(FitNote.from_json)), None),
            left_out=fields.take("left_out", table(text()), {}),
            groups=fields.take("groups", maybe(table(record(Metrics.from_json))), None),
            random_weights=fields.take("weights", one_of("random"), "") == "random",
        )


def _parameter(value: Any, key: str) -> Parameter:
    """One of a detector's parameters."""
    return value if value is None or isinstance(value, bool) else either(number(), text())(value, key)


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

    @classmethod
    def from_json(cls, fields: Fields) -> "Provenance":
        return cls(
            dice=fields.take("dice", text()),
            checkpoint_sha256=fields.take("checkpoint_sha256", text()),
            identities=fields.take("identities", table(text())),
            mean_sha256=fields.take("mean_sha256", maybe(text()), None),
        )


@dataclass(frozen=True)
class Run:
    """One method's saved result, and the folder that it is in with the scores."""

    folder: Path
    result: Result
    provenance: Provenance

    def id_scores(self) -> Float64:
        """float64 (N,)"""
        return _read_scores(self.folder / _ID_SCORES, self.result.n_id)

    def ood_scores(self, name: str) -> Float64:
        """float64 (N,) of the OOD set `name`."""
        identity = self.provenance.identities[name]
        path = self.folder / set_folder(name, identity) / _OOD_SCORES
        return _read_scores(path, self.result.sets[name].n)


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
        value = schema.parse(read_bounded(file, schema.MOST_BYTES))
        result, provenance = schema.check(value, record(_run_from_json))
    except Unfit as reason:
        raise InputError(
            f"{file}: no run.json of dice, or a damaged one ({reason}); run `dice eval` again"
        ) from None
    return Run(file.parent, result, provenance)


def _run_from_json(fields: Fields) -> tuple[Result, Provenance]:
    result, provenance = Result.from_json(fields), Provenance.from_json(fields)
    for name in result.sets:
        if name not in provenance.identities:
            fields.refuse("identities", f"lacks that of {name!r:.60}")
    return result, provenance


def _read_scores(path: Path, n: int) -> Float64:
    """The `n` scores of a file, one a line."""
    try:
        scores = np.array(read_bounded(path, MOST_SCORES).split(), np.float64)
    except ValueError as reason:
        words = str(reason)[:120]  # it quotes what is no number
        raise InputError(f"{path}: scores cannot be read ({words}); run `dice eval` again") from None
    if len(scores) != n:
        raise InputError(f"{path}: holds {len(scores)} scores, want {n}; run `dice eval` again")
    if not (np.abs(scores) < LARGEST_SCORE).all():
        raise InputError(f"{path}: NaN, infinity or a number too large among scores; run `dice eval` again")
    return scores
