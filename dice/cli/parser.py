"""The commands of `dice`: their names, flags and order in `--help`.

Each command is a file of this folder with a function `run`, and has a function here that adds its flags. The
file is imported when the command runs and not before: importing all takes a second or two, `dice --help` a
fifth of one.
"""

import importlib
from argparse import PARSER, Action, ArgumentError, ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from dice.cli import flags
from dice.console import write
from dice.errors import InputError
from dice.version import __version__

__all__ = ["make_parser"]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see `{self.prog} --help`)")

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        if (
            "" in arg_strings and action.nargs != PARSER
        ):  # of a shell variable that is not set, say: not the same as no flag
            raise ArgumentError(action, "is empty; give a value, or leave it out")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version
        write(message)


_Commands: TypeAlias = "_SubParsersAction[_Parser]"  # what add_subparsers returns; it has no public name


def make_parser() -> ArgumentParser:
    """The parser of the command line. It adds `run` to the flags it returns: the command's function, which
    takes them and returns the exit status."""
    parser = _Parser(
        prog="dice",
        description="Out-of-distribution detection by ranked, sparsified last-layer weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dice {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (
        _eval,
        _demo_cifar,
        _demo_imagenet,
        _demo,
        _precompute,
        _merge,
        _fit,
        _score,
        _sweep,
        _report,
        _select_svhn,
        _download,
        _info,
        _bench,
    ):
        add(commands)
    return parser


def _command(
    commands: _Commands,
    name: str,
    words: str | None,
    *groups: Callable[[ArgumentParser], None],
) -> ArgumentParser:
    """Adds the command that `run` of `dice/cli/<name>.py` is, with the flags of `groups`. One without `words`
    is not listed by --help."""

    def run(args: Namespace) -> int:
        module = importlib.import_module(f"dice.cli.{name.replace('-', '_')}")
        status: int = module.run(args)
        return status

    listed: dict[str, Any] = {"help": words, "description": words} if words else {}
    parser = commands.add_parser(name, allow_abbrev=False, **listed)
    parser.set_defaults(run=run)
    for add_group in groups:
        add_group(parser)
    return parser


_EVALUATION = flags.add_network, flags.add_methods, flags.add_decoding, flags.add_evaluation


def _eval(commands: _Commands) -> None:
    words = "score an ID set against OOD sets and print the table"
    _command(commands, "eval", words, flags.add_id_sets, *_EVALUATION)


def _demo_cifar(commands: _Commands) -> None:
    parser = _command(commands, "demo-cifar", None, flags.add_id_sets, *_EVALUATION)  # of demo-cifar.sh
    parser.set_defaults(model_arch="densenet")


def _demo_imagenet(commands: _Commands) -> None:
    parser = _command(commands, "demo-imagenet", None, *_EVALUATION)  # of demo-imagenet.sh
    parser.add_argument("--random-weights", action="store_true", help="made-up weights: meaningless numbers")
    parser.set_defaults(model_arch="resnet50", name=None)


def _demo(commands: _Commands) -> None:
    words = "check that everything works here: real images and a network that ship with dice"
    groups = flags.add_device, flags.add_methods, flags.add_decoding, flags.add_saving, flags.add_json
    _command(commands, "demo", words, *groups)


def _precompute(commands: _Commands) -> None:
    words = "statistics of the training features: the mean for DICE, class means, covariance"
    parser = _command(commands, "precompute", words, flags.add_id_set, flags.add_network, flags.add_decoding)
    parser.add_argument("--in-data", metavar="FOLDER|LIST", help="training images of your own")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=".npz, or .npy for the mean alone; default: cache/<ID set>_<arch>_feat_stat.npz under --root",
    )
    parser.add_argument(
        "--shard",
        type=flags.shard,
        metavar="I/N",
        help="take the I-th of N parts; `dice merge` makes one of all",
    )
    parser.add_argument("--max-images", type=flags.count, metavar="N", help="take a stratified sample")
    parser.add_argument("--seed", type=flags.whole, default=0, metavar="N", help="of the sample")
    parser.add_argument(
        "--mean-only", action="store_true", help="mean and variance, no class means and covariance"
    )
    flags.add_saving(parser)


def _merge(commands: _Commands) -> None:
    words = "one statistics file from those of all shards, or one detector from several"
    parser = _command(commands, "merge", words)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="of `dice precompute --shard`, or of `dice fit`: no mixture"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="of statistics: .npz, or .npy for the mean alone; of detectors: any name",
    )


def _fit(commands: _Commands) -> None:
    words = "a detector file: fitted on training images, its threshold from held-out ones"
    parser = _command(commands, "fit", words, flags.add_id_set, flags.add_network, flags.add_decoding)
    parser.add_argument(
        "--method", required=True, metavar="METHOD", help="dice, mds, msp ...; see dice.detectors.registry"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the detector file")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        type=flags.parameter,
        metavar="NAME=VALUE",
        help="a parameter of the method, as p=70; repeat it for more",
    )
    parser.add_argument("--in-data", metavar="FOLDER|LIST", help="training images of your own")
    parser.add_argument(
        "--mean", metavar="FILE.npy", help="mean feature for DICE: no training images are read"
    )
    parser.add_argument(
        "--statistics",
        metavar="FILE.npz",
        help="of `dice precompute`: fit on all its images, none held out, without reading them; for dice, "
        "dice+react, mds, rmds, residual, she, fdbd, nci",
    )
    parser.add_argument(
        "--calibration",
        metavar="NAME[=FOLDER|LIST|.npy]",
        help="held-out ID images, neither of training nor of test; without them there is no threshold",
    )
    parser.add_argument(
        "--tpr", type=float, default=0.95, help="accept a further ID image with this probability at least"
    )
    parser.add_argument("--by-class", action="store_true", help="a threshold for each predicted class")
    flags.add_out_datasets(parser, "none. How much of each the threshold accepts is printed")


def _score(commands: _Commands) -> None:
    groups = flags.add_id_set, flags.add_network, flags.add_methods_before_files, flags.add_decoding
    parser = _command(commands, "score", "score image files and folders, one line an image", *groups)
    parser.add_argument("files", nargs="+", metavar="FILE|FOLDER")
    parser.add_argument(
        "--detector", metavar="FILE", help="of `dice fit`; adds p-values and verdicts, ID or OOD"
    )
    parser.add_argument("--fail-on-ood", action="store_true", help="exit with 1 if any image is OOD")
    parser.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")


def _sweep(commands: _Commands) -> None:
    words = "DICE at many p and clips: one backbone pass, a table and a curve"
    groups = flags.add_id_set, flags.add_network, flags.add_decoding, flags.add_saving
    parser = _command(commands, "sweep", words, *groups)
    parser.add_argument(
        "--p", nargs="+", type=flags.range_of, metavar="P|FROM:TO:STEP", help="default 0:100:5"
    )
    parser.add_argument(
        "--clip",
        nargs="+",
        type=flags.clip,
        metavar="C",
        help="cut features at C (ReAct); `none` for no cut, the default",
    )
    parser.add_argument("--score", choices=("energy", "msp", "maxlogit"), default="energy")
    parser.add_argument("--in-data", metavar="FOLDER|LIST", help="ID images of your own")
    flags.add_out_datasets(parser)
    parser.add_argument("--mean", metavar="FILE.npy", help="mean feature for DICE")
    parser.add_argument(
        "--proxy", metavar="NAME[=FOLDER|LIST|.npy]", help="choose p on training images against this OOD set"
    )
    parser.add_argument(
        "--choose-data",
        metavar="FOLDER|LIST",
        help="ID images to choose p by; default: a sample of training",
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--out", metavar="FILE.json", help="also write the rows there")
    flags.add_convention(parser)


def _report(commands: _Commands) -> None:
    words = "saved runs as one HTML page with figures, and as a Markdown table"
    parser = _command(commands, "report", words)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders that `dice eval` wrote, or run.json files in them"
    )
    parser.add_argument(
        "--out",
        default="report.html",
        metavar="FILE.html",
        help="the table goes to FILE.md; default: report.html",
    )


def _select_svhn(commands: _Commands) -> None:
    words = "choose the original's SVHN test images: the first 1000 of each digit"
    _command(commands, "select-svhn", words, flags.add_root)


def _download(commands: _Commands) -> None:
    parser = _command(commands, "download", "fetch data sets and checkpoints into --root", flags.add_root)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="what to fetch; without a name: lists what there is"
    )


def _info(commands: _Commands) -> None:
    words = "versions, instruction set, threads, device, and which data sets are there"
    _command(commands, "info", words, flags.add_root)


def _bench(commands: _Commands) -> None:
    words = "images per second of a network here"
    parser = _command(commands, "bench", words, flags.add_id_set, flags.add_network)
    parser.add_argument("-b", "--batch-size", type=flags.count, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure")
