"""The methods of `dice.detectors.registry` that `--method`, `--p`, `--clip_threshold` and `--run` ask for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dice.arrays import Float64
from dice.backbone import Backbone
from dice.console import debug
from dice.detectors import DICE, Detector
from dice.detectors.activations import Clip
from dice.detectors.last_layer import SCORES
from dice.detectors.registry import METHODS, make
from dice.errors import InputError

__all__ = ["ALL", "Method", "choose_methods", "parse_run"]

ALL = "all"  # every method of the registry


@dataclass(frozen=True)
class Method:
    """A method of the registry as asked for.

    p: sparsity level in percent, None for the last layer as it is. clip: the value that ReAct cuts features
        at; None where it is not given (for `react` it is then learnt).
    """

    name: str
    p: float | None = None
    clip: float | None = None

    @property
    def as_original(self) -> bool:
        """Whether the original has it, so that `dice.DICE` computes it; else the registry's detector does."""
        return self.name in SCORES or self.p is not None or self.clip is not None

    @property
    def score(self) -> str:
        """What `dice.DICE` takes from the logits, where it computes this method."""
        return self.name if self.name in SCORES else "energy"

    @property
    def learns(self) -> bool:
        """Whether it is fitted on training images; `dice.DICE` takes their mean feature instead."""
        return not self.as_original and METHODS[self.name].needs_fit

    def detector(self, net: Backbone, mean: Float64 | None, dataset: str | None = None) -> Detector:
        """A detector for the last layer of `net`, with the published parameters for the ID set `dataset`.

        mean: the mean feature, float64 (D,), which a method with p needs.
        """
        if not self.as_original:
            detector = make(self.name, net.weight, net.bias, dataset=dataset)
            return detector.set_params(device=net.device) if "device" in detector.get_params() else detector
        return DICE(
            net.weight,
            net.bias,
            p=self.p,
            clip=self.clip,
            mean=mean if self.p is not None else None,
            score=self.score,
            device=net.device,
        )

    @property
    def label(self) -> str:
        """The name of the method's folder, another one for every p and clip."""
        return "-".join([self.name, *(f"{key}{value:g}" for key, value in self._given())])

    @property
    def title(self) -> str:
        """The method with its p and clip, as tables and reports print it."""
        return " ".join([self.name, *(f"{key}={value:g}" for key, value in self._given())])

    def _given(self) -> Iterator[tuple[str, float]]:
        for key, value in (("p", self.p), ("clip", self.clip)):
            if value is not None:
                yield key, value


def choose_methods(
    names: Sequence[str],
    ps: Sequence[float],
    clip: float | None,
    *,
    default_p: float,
    default_clip: Clip | None = None,
) -> list[Method]:
    """What `--method`, `--p` and `--clip_threshold` ask for; "all" is every method of the registry.

    A method that stands alone takes p and clip as the original does: energy with p is DICE, with clip ReAct,
    with both DICE+ReAct. With several methods p applies to dice* and clip to *react alone. dice+react without
    p and clip takes the published pair.
    default_clip: ReAct's rule where no clip is given; a rule without a value is learnt. None: a react without
        clip is refused.
    """
    if ALL in names:
        names = list(METHODS)
    for name in names:
        if name not in METHODS:
            raise InputError(f"--method {name}: unknown; choose from {', '.join(METHODS)}, or {ALL}")
    for p in ps:
        if not 0 <= p <= 100:  # NaN fails too
            raise InputError(f"--p {p:g}: the sparsity level is a percentage from 0 to 100")
    if clip is not None and not 0 < clip < float("inf"):
        raise InputError(f"--clip_threshold {clip:g}: must be a positive, finite number")
    chosen = []
    alone = len(names) == 1
    for name in names:
        masked, clipped = "dice" in name, "react" in name
        if alone and (ps or clip is not None) and not (masked or clipped or name in SCORES):
            raise InputError(f"--method {name}: takes neither --p nor --clip_threshold")
        if clipped and clip is None and default_clip is None:
            raise InputError(
                f"--method {name} needs --clip_threshold, the value above which features are cut"
            )
        level, usual_p = clip if alone or clipped else None, default_p
        if clipped and level is None and default_clip is not None:
            level = default_clip.at
            if masked:
                published = METHODS[name].parameters
                level, usual_p = published["activation"].at, published["p"]
            debug(f"{name}: clip {'learnt' if level is None else level}, the usual one")
        if masked and not ps:
            debug(f"{name}: p={usual_p:g}, the usual one")
        levels: Sequence[float | None] = ps if ps and (masked or alone) else [usual_p if masked else None]
        chosen += [Method(name, int(p) if p is not None and p == int(p) else p, level) for p in levels]
    return list(dict.fromkeys(chosen))


def parse_run(text: str, *, default_p: float, default_clip: Clip | None = None) -> Method:
    """One method with its own parameters, `METHOD[:p=P,clip=C]`, such as "dice+react:p=10,clip=1"."""
    name, _, given = text.partition(":")
    values: dict[str, float] = {}
    try:
        for part in given.split(",") if given else ():
            key, value = part.split("=")
            if key not in ("p", "clip") or key in values:
                raise ValueError(key)
            values[key] = float(value)
        if name == ALL:
            raise ValueError(name)
    except ValueError:
        raise InputError(
            f"--run {text}: write METHOD, METHOD:p=P, METHOD:clip=C or METHOD:p=P,clip=C"
        ) from None
    ps = [values["p"]] if "p" in values else []
    return choose_methods([name], ps, values.get("clip"), default_p=default_p, default_clip=default_clip)[0]
