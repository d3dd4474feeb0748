"""The command line: parses, dispatches, and turns every refusal into one line and an exit status.

0 done (a missing set is named and left out), 1 an image is OOD (`score --fail-on-ood` alone), 2 refused or partly
refused, 130 interrupted.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dice import __version__
from dice.errors import DeviceError, InputError

__all__ = ["main"]

_METHOD_HELP = (
    "default energy; `all`, or any of the table of methods: energy msp maxlogit dice react dice+react knn mds vim ... (a "
    "wrong name lists them). One of the first three takes --p and --clip_threshold itself (energy with --p is DICE); with "
    "several methods --p goes to dice*, --clip_threshold to *react"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args = _parser().parse_args(argv)
        from dice import console

        console.route_warnings()
        home = importlib.import_module(f"dice.{args.home}")
        status: int = getattr(home, args.run)(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _last_words("interrupted; what is finished is kept, run again to go on", 130)
    except OSError as reason:  # stdout's: what else fails has become an InputError
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(reason, BrokenPipeError):  # the reader has seen enough
            return 0
        return _last_words(f"error: standard output: {reason.strerror or reason}", 2)
    except (InputError, DeviceError) as reason:
        return _last_words(f"error: {' '.join(str(reason).split())}", 2)
    except MemoryError:
        return _last_words("error: out of memory; a smaller --batch-size needs less", 2)


def _last_words(text: str, status: int) -> int:
    print(f"dice: {text}", file=sys.stderr)
    return status


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def _range(text: str) -> list[float]:
    from dice.eval.sweep import range_of

    return range_of(text)


def _clip(text: str) -> float | None:
    return None if text == "none" else float(text)


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _shard(text: str) -> tuple[int, int]:
    i, n = map(int, text.split("/"))
    return i, n


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dice",
        description="Out-of-distribution detection by ranked, sparsified last-layer weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dice {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, words: str | None, *parts: Any) -> argparse.ArgumentParser:
        listed: dict[str, Any] = {"help": words, "description": words} if words else {}
        sub = commands.add_parser(name, allow_abbrev=False, **listed)
        sub.set_defaults(run=name.replace("-", "_"), home="cli.demos" if name.startswith("demo") else "cli.commands")
        for part in parts:
            part(sub)
        return sub

    evaluation = _id_sets, _network, _methods, _decoding, _evaluation
    add("eval", "score an ID set against OOD sets and print the table", *evaluation)
    add("demo-cifar", None, *evaluation).set_defaults(model_arch="densenet")  # see demo-cifar.sh
    sub = add("demo-imagenet", None, _network, _methods, _decoding, _evaluation)
    sub.add_argument("--random-weights", action="store_true", help="made-up weights: meaningless numbers")
    sub.set_defaults(model_arch="resnet50", name=None)
    sub = add(
        "demo",
        "check that everything works here: real images and a network that ship with dice",
        _device,
        _methods,
        _decoding,
    )
    _saving(sub)
    sub = add(
        "precompute",
        "statistics of the training features: the mean for DICE, class means, covariance",
        _id_set,
        _network,
        _decoding,
    )
    sub.add_argument("--in-data", metavar="FOLDER|LIST", help="training images of your own")
    sub.add_argument(
        "--out",
        metavar="FILE",
        help=".npz, or .npy for the mean alone; default: cache/<ID set>_<arch>_feat_stat.npz under --root",
    )
    sub.add_argument(
        "--shard", type=_shard, metavar="I/N", help="take the I-th of N parts; `dice merge` makes one of all"
    )
    sub.add_argument("--max-images", type=_count, metavar="N", help="take a stratified sample")
    sub.add_argument("--seed", type=int, default=0, help="of the sample")
    sub.add_argument(
        "--mean-only", action="store_true", help="mean and variance, no class means and covariance"
    )
    _saving(sub, json=False)
    sub = add("merge", "one statistics file from those of all shards")
    sub.add_argument("files", nargs="+", metavar="FILE")
    sub.add_argument("--out", required=True, metavar="FILE", help=".npz, or .npy for the mean alone")
    sub = add(
        "fit",
        "a detector file: fitted on training images, its threshold from held-out ones",
        _id_set,
        _network,
        _decoding,
    )
    sub.set_defaults(home="eval.gate")
    sub.add_argument(
        "--method", required=True, metavar="METHOD", help="dice, mds, msp ...; see dice.detectors.registry"
    )
    sub.add_argument("--out", required=True, metavar="FILE", help="the detector file")
    sub.add_argument(
        "--param",
        action="append",
        default=[],
        type=_parameter,
        metavar="NAME=VALUE",
        help="a parameter of the method, as p=70; repeat it for more",
    )
    sub.add_argument("--in-data", metavar="FOLDER|LIST", help="training images of your own")
    sub.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE: no training images are read")
    sub.add_argument(
        "--calibration",
        metavar="NAME[=FOLDER|LIST|.npy]",
        help="held-out ID images, neither of training nor of test; without them there is no threshold",
    )
    sub.add_argument(
        "--tpr", type=float, default=0.95, help="accept a further ID image with this probability at least"
    )
    sub.add_argument("--by-class", action="store_true", help="a threshold for each predicted class")
    sub = add(
        "score",
        "score image files and folders, one line an image",
        _id_set,
        _network,
        _one_method,
        _decoding,
    )
    sub.add_argument("files", nargs="+", metavar="FILE|FOLDER")
    sub.add_argument(
        "--detector", metavar="FILE", help="of `dice fit`; adds p-values and verdicts, ID or OOD"
    )
    sub.add_argument("--fail-on-ood", action="store_true", help="exit with 1 if any image is OOD")
    sub.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    sub.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    sub = add(
        "sweep",
        "DICE at many p and clips: one backbone pass, a table and a curve",
        _id_set,
        _network,
        _decoding,
    )
    sub.set_defaults(run="run", home="eval.sweep")
    _saving(sub, json=False)
    sub.add_argument("--p", nargs="+", type=_range, metavar="P|FROM:TO:STEP", help="default 0:100:5")
    sub.add_argument(
        "--clip",
        nargs="+",
        type=_clip,
        metavar="C",
        help="cut features at C (ReAct); `none` for no cut, the default",
    )
    sub.add_argument("--score", choices=("energy", "msp", "maxlogit"), default="energy")
    sub.add_argument("--in-data", metavar="FOLDER|LIST", help="ID images of your own")
    _out_datasets(sub)
    sub.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    sub.add_argument(
        "--proxy", metavar="NAME[=FOLDER|LIST|.npy]", help="choose p on training images against this OOD set"
    )
    sub.add_argument(
        "--choose-data", metavar="FOLDER|LIST", help="ID images to choose p by; default: a sample of training"
    )
    sub.add_argument("--format", choices=("table", "csv", "json"), default="table")
    sub.add_argument("--out", metavar="FILE.json", help="also write the rows there")
    _convention(sub)
    sub = add("report", "saved runs as one HTML page with figures, and as a Markdown table")
    sub.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders that `dice eval` wrote, or run.json files in them"
    )
    sub.add_argument(
        "--out",
        default="report.html",
        metavar="FILE.html",
        help="the table goes to FILE.md; default: report.html",
    )
    add("select-svhn", "choose the original's SVHN test images: the first 1000 of each digit", _root)
    sub = add("download", "fetch data sets and checkpoints into --root", _root)
    sub.add_argument(
        "names", nargs="*", metavar="NAME", help="what to fetch; without a name: lists what there is"
    )
    add("info", "versions, instruction set, threads, device, and which data sets are there", _root)
    sub = add("bench", "images per second of a network here", _id_set, _network)
    sub.add_argument("-b", "--batch-size", type=_count, default=64)
    sub.add_argument("--seconds", type=float, default=5.0, help="how long to measure")
    return parser


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        default=os.environ.get("DICE_ROOT") or ".",
        metavar="DIR",
        help="holds data/ datasets/ checkpoints/ cache/; default: DICE_ROOT, else the current directory",
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16x3", "bf16"))
    parser.add_argument("--threads", type=_count, metavar="N", help="default: DICE_THREADS, else one a core")
    parser.add_argument(
        "--gpu", default="0", metavar="INDEX", help="which of the visible GPUs --device cuda uses"
    )


def _network(parser: argparse.ArgumentParser) -> None:
    _root(parser)
    _device(parser)
    parser.add_argument("--name", default="densenet", help="folder of the checkpoint, and of the results")
    parser.add_argument(
        "--model-arch", "--arch", metavar="ARCH", help="default: recognised from the checkpoint"
    )
    parser.add_argument("--layers", type=_count, metavar="DEPTH", help="refuse a network of another depth")
    parser.add_argument("--epochs", type=_count, default=100, metavar="N", help="use checkpoint_N.pth.tar")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="instead of checkpoints/<ID set>/<name>/checkpoint_<epochs>.pth.tar",
    )
    for unused, kind in (
        ("depth", int),
        ("width", int),
        ("epsilon", float),
        ("iters", int),
        ("iter-size", float),
        ("severity-level", int),
    ):
        parser.add_argument(
            f"--{unused}", type=kind, help=argparse.SUPPRESS
        )  # no effect in the original either
    parser.add_argument("--cal-metric", action="store_true", help=argparse.SUPPRESS)


def _id_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--in-dataset", default="CIFAR-100", metavar="NAME", help="ID set, default CIFAR-100")


def _id_sets(parser: argparse.ArgumentParser) -> None:
    words = "ID set, default CIFAR-100; several are evaluated one after the other. The name of --in-data where that is given"
    parser.add_argument("--in-dataset", nargs="+", default=[], metavar="NAME", help=words)


def _methods(parser: argparse.ArgumentParser, **several: Any) -> None:
    several = several or {"nargs": "+"}
    parser.add_argument("--method", default=[], metavar="METHOD", help=_METHOD_HELP, **several)
    _runs(parser)
    parser.add_argument(
        "--p",
        type=float,
        default=[],
        metavar="PERCENT",
        help="sparsity: percent of weights dropped",
        **several,
    )
    parser.add_argument(
        "--clip_threshold",
        "--clip-threshold",
        type=float,
        default=1e5,
        metavar="C",
        help="cut features at C before the head (ReAct); 1e5, the default, is no cut",
    )


def _runs(parser: argparse.ArgumentParser) -> None:
    words = (
        "one method with its own parameters, as dice+react:p=10,clip=1; repeat it for more, all in one pass"
    )
    parser.add_argument(
        "--run", action="append", default=[], dest="runs", metavar="METHOD:p=P,clip=C", help=words
    )


def _one_method(parser: argparse.ArgumentParser) -> None:
    """One value a flag, so that file names may follow; a repeated flag adds a value."""
    _methods(parser, action="append")


def _decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b",
        "--batch-size",
        type=_count,
        default=64,
        metavar="N",
        help="images a step; no score depends on it",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave unreadable images out instead of refusing their set"
    )


def _saving(parser: argparse.ArgumentParser, *, json: bool = True) -> None:
    parser.add_argument(
        "--base-dir", default="output/ood_scores", metavar="DIR", help="results and stored features"
    )
    parser.add_argument("--fresh", action="store_true", help="compute again what is stored")
    if json:
        parser.add_argument("--json", metavar="FILE", help="also write the results there")


def _out_datasets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out-datasets",
        nargs="+",
        default=[],
        metavar="NAME[=FOLDER|LIST|.npy]",
        help="default: the original's sets",
    )
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        dest="lists",
        metavar="[NAME=]FILE[@FOLDER]",
        help="an OOD set by a list file, `relative/path label` a line; repeat it for more",
    )


def _convention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--convention",
        choices=("paper", "openood", "sklearn"),
        default="paper",
        help="of the metrics: who is positive, ties, areas (see dice.metrics); default paper",
    )


def _evaluation(parser: argparse.ArgumentParser) -> None:
    _saving(parser)
    parser.add_argument("--in-data", metavar="FOLDER|LIST", help="ID images of your own")
    parser.add_argument(
        "--train-data",
        metavar="FOLDER|LIST",
        help="training images of your own, by class, for methods that learn; default: the ID set's under --root",
    )
    _out_datasets(parser)
    parser.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    side = parser.add_mutually_exclusive_group()
    side.add_argument(
        "--in-dist-only", dest="only", action="store_const", const="in", help="compute the ID set alone"
    )
    side.add_argument(
        "--out-dist-only", dest="only", action="store_const", const="out", help="compute the OOD sets alone"
    )
    parser.add_argument("--strict", action="store_true", help="a missing set is an error")
    _convention(parser)
    parser.add_argument(
        "--near",
        nargs="+",
        default=[],
        metavar="NAME",
        help="near-OOD sets: also average these and the others apart",
    )
    parser.add_argument(
        "--bootstrap",
        type=_whole,
        default=0,
        metavar="N",
        help="95 %% intervals from N samples; default 0, none",
    )
