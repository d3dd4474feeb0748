"""Flags that several commands share, and the types of their values.

Nothing here imports numpy, so that `dice --help` answers at once.
"""

import argparse
import json
import os
from typing import Any

MOST = (1 << 31) - 1  # of a whole number; the core takes so many of threads and of images at once
NO_CLIP = 1e5  # the original's default of --clip_threshold, far above any feature

_METHOD_HELP = (
    "default energy; `all`, or any of the table of methods: energy msp maxlogit dice react dice+react knn "
    "mds vim ... (a wrong name lists them). One of the first three takes --p and --clip_threshold itself "
    "(energy with --p is DICE); with several methods --p goes to dice*, --clip_threshold to *react"
)

# -- types of values


def count(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"is above {MOST}")
    return value


def range_of(text: str) -> list[float]:
    """The numbers of `70` or of `FROM:TO:STEP`, where both ends are included."""
    ends = [float(part) for part in text.split(":")]
    if len(ends) == 1:
        return ends
    first, last, step = ends
    if not (step > 0 and first <= last and (last - first) / step < 10_000):
        raise ValueError(text)
    return [first + i * step for i in range(int((last - first) / step + 1e-9) + 1)]


def clip(text: str) -> float | None:
    return None if text == "none" else float(text)


def parameter(text: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`; the value is read as JSON, and is a string where it is none."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{name} is nested too deep") from None


def shard(text: str) -> tuple[int, int]:
    """(i, n) of `I/N`."""
    i, n = map(int, text.split("/"))
    return i, n


# -- groups of flags


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        default=os.environ.get("DICE_ROOT") or ".",
        metavar="DIR",
        help="holds data/ datasets/ checkpoints/ cache/; default: DICE_ROOT, else the current directory",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16x3", "bf16"))
    parser.add_argument("--threads", type=count, metavar="N", help="default: DICE_THREADS, else one a core")
    parser.add_argument(
        "--gpu", default="0", metavar="INDEX", help="which of the visible GPUs --device cuda uses"
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    add_root(parser)
    add_device(parser)
    parser.add_argument("--name", default="densenet", help="folder of the checkpoint, and of the results")
    parser.add_argument(
        "--model-arch", "--arch", metavar="ARCH", help="default: recognised from the checkpoint"
    )
    parser.add_argument("--layers", type=count, metavar="DEPTH", help="refuse a network of another depth")
    parser.add_argument("--epochs", type=count, default=100, metavar="N", help="use checkpoint_N.pth.tar")
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
        # no effect in the original either
        parser.add_argument(f"--{unused}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--cal-metric", action="store_true", help=argparse.SUPPRESS)


def add_id_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--in-dataset", default="CIFAR-100", metavar="NAME", help="ID set, default CIFAR-100")


def add_id_sets(parser: argparse.ArgumentParser) -> None:
    words = (
        "ID set, default CIFAR-100; several are evaluated one after the other. The name of --in-data where "
        "that is given"
    )
    parser.add_argument("--in-dataset", nargs="+", default=[], metavar="NAME", help=words)


def add_methods(parser: argparse.ArgumentParser, **several: Any) -> None:
    several = several or {"nargs": "+"}
    parser.add_argument("--method", default=[], metavar="METHOD", help=_METHOD_HELP, **several)
    add_runs(parser)
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
        default=NO_CLIP,
        metavar="C",
        help="cut features at C before the head (ReAct); 1e5, the default, is no cut",
    )


def add_runs(parser: argparse.ArgumentParser) -> None:
    words = (
        "one method with its own parameters, as dice+react:p=10,clip=1; repeat it for more, all in one pass"
    )
    parser.add_argument(
        "--run", action="append", default=[], dest="runs", metavar="METHOD:p=P,clip=C", help=words
    )


def add_methods_before_files(parser: argparse.ArgumentParser) -> None:
    """`add_methods` with one value a flag, so that file names may follow it; a repeated flag adds a value."""
    add_methods(parser, action="append")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b",
        "--batch-size",
        type=count,
        default=64,
        metavar="N",
        help="images a step; no score depends on it",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave unreadable images out instead of refusing their set"
    )


def add_saving(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-dir", default="output/ood_scores", metavar="DIR", help="results and stored features"
    )
    parser.add_argument("--fresh", action="store_true", help="compute again what is stored")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the results there")


def add_out_datasets(parser: argparse.ArgumentParser, default: str = "the original's sets") -> None:
    """`default`: what stands for no flag, in words."""
    parser.add_argument(
        "--out-datasets",
        nargs="+",
        default=[],
        metavar="NAME[=FOLDER|LIST|.npy]",
        help=f"OOD sets; default: {default}",
    )
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        dest="lists",
        metavar="[NAME=]FILE[@FOLDER]",
        help="an OOD set by a list file, `relative/path label` a line; repeat it for more",
    )


def add_convention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--convention",
        choices=("paper", "openood", "sklearn"),
        default="paper",
        help="of the metrics: who is positive, ties, areas (see dice.metrics); default paper",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    add_saving(parser)
    add_json(parser)
    parser.add_argument("--in-data", metavar="FOLDER|LIST", help="ID images of your own")
    parser.add_argument(
        "--train-data",
        metavar="FOLDER|LIST",
        help="training images of your own, by class, for methods that learn; default: the ID set's under "
        "--root",
    )
    add_out_datasets(parser)
    parser.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    side = parser.add_mutually_exclusive_group()
    side.add_argument(
        "--in-dist-only", dest="only", action="store_const", const="in", help="compute the ID set alone"
    )
    side.add_argument(
        "--out-dist-only", dest="only", action="store_const", const="out", help="compute the OOD sets alone"
    )
    parser.add_argument("--strict", action="store_true", help="a missing set is an error")
    add_convention(parser)
    parser.add_argument(
        "--near",
        nargs="+",
        default=[],
        metavar="NAME",
        help="near-OOD sets: also average these and the others apart",
    )
    parser.add_argument(
        "--bootstrap",
        type=whole,
        default=0,
        metavar="N",
        help="95 %% intervals from N samples; default 0, none",
    )
