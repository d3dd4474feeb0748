"""Every command that writes files, ready to be run in a child of a fork, where it can be killed or starved.

A fork spares starting Python; what a test changes in this process, the child has too.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from test_download import Server, md5, member, tarball
from tiny import save_densenet, save_images

from dice.cli.main import main
from dice.eval import features, precompute
from dice.images import download
from dice.images.sources import Item, Step

NETWORK = ("--checkpoint", "net.npz", "--model-arch", "densenet")
OWN = ("--base-dir", "out")

COMMANDS: dict[str, tuple[str, ...]] = {
    "eval": (
        *("eval", "--in-data", "id", "--train-data", "train", "--out-datasets", "ood=ood", "--p", "70"),
        *("--method", "msp", "dice", "mds", *NETWORK, *OWN, "--json", "out/results.json"),
    ),
    "precompute": ("precompute", "--in-data", "train", "--out", "out/mean.npz", *NETWORK, *OWN),
    "merge": ("merge", "part1.npz", "part2.npz", "--out", "out/whole.npz"),
    "fit": (
        *("fit", "--method", "dice", "--in-data", "train", "--calibration", "id=id", *NETWORK),
        *("--out", "out/gate.dice"),
    ),
    "sweep": (
        *("sweep", "--in-data", "id", "--out-datasets", "ood=ood", "--mean", "mean.npy", "--p", "50", "90"),
        *("--out", "out/sweep.json", *NETWORK, *OWN),
    ),
    "report": ("report", "runs", "--out", "out/report.html"),
    "select-svhn": ("select-svhn", "--root", "out"),
    "download": ("download", "archive", "plain", "--root", "out"),
}
_SVHN = "datasets/ood_datasets/svhn"


@dataclass
class Ended:
    """How a command ended."""

    status: int  #: negative: by that signal
    said: str  #: on both standard streams
    seconds: float


@dataclass
class Place:
    """A folder with all that the commands read; they write into its folder `out`."""

    home: Path
    whole: dict[str, dict[str, bytes]] = field(default_factory=dict)  #: what an undisturbed run leaves

    def clear(self, command: str) -> None:
        """Makes `out` what it is before the command: empty, or with what it needs there."""
        out = self.home / "out"
        if not out.is_mount():
            shutil.rmtree(out, ignore_errors=True)
        for path in out.iterdir() if out.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if command == "select-svhn":
            (out / _SVHN).mkdir(parents=True)
            shutil.copy(self.home / "digits.mat", out / _SVHN / "test_32x32.mat")

    def run(self, command: str, kill_after: float | None = None, before: Callable[[], object] = int) -> Ended:
        """Runs it in a child, which calls `before` first; kills that after so many seconds."""
        (end, said), start = os.pipe(), time.perf_counter()  # a pipe takes 64 KB, more than a command says
        child = os.fork()
        if child == 0:
            status = 99
            try:
                sys.stdout = sys.stderr = os.fdopen(said, "w", 1)
                os.chdir(self.home)
                before()
                status = main(COMMANDS[command])
            finally:
                os._exit(status)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(said)
        with open(end) as words:
            return Ended(status, words.read(), time.perf_counter() - start)

    def left(self) -> dict[str, bytes]:
        """What is in `out` under final names, without what differs from run to run."""
        out, found = self.home / "out", {}
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            name = str(path.relative_to(out))
            hidden = any(part.startswith(".") for part in Path(name).parts)
            if hidden or path.suffix == ".part" or name == "contents.npz":  # the index has times of files
                continue
            found[name] = _settled(path)
        return found

    def check(self, command: str) -> None:
        """What is there under the names of the results is whole, whatever befell the command."""
        for name, data in self.left().items():
            assert data == self.whole[command].get(name, data), f"{name} is half written"

    def undisturbed(self, command: str) -> Ended:
        """Runs the command, which must end well and leave what it left when nothing disturbed it."""
        ended = self.run(command)
        assert ended.status == 0, ended.said
        left = self.left()
        for name, data in self.whole.setdefault(command, left).items():
            assert left.get(name) == data, f"{name} differs from that of an undisturbed run"
        return ended


def _settled(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".mat":
        return data[128:]  # its header has the date
    if path.suffix == ".json" and path.name != "manifest.json":
        rows = json.loads(data)
        for row in rows if isinstance(rows, list) else [rows]:
            for key in ("seconds", "images_per_s"):
                row.pop(key, None)
        return json.dumps(rows).encode()
    return data


def make_place(home: Path, patch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The folder, and a server for `dice download` as long as the generator is not closed."""
    patch.setattr(features, "CHUNK_IMAGES", 4)  # more to write, so that more can go wrong
    patch.setattr(precompute, "CHUNK_IMAGES", 4)
    patch.setattr(precompute, "SAVE_SECONDS", 0)
    save_densenet(home / "net.npz")
    for seed, (name, n) in enumerate({"id": 20, "train": 24, "ood": 12}.items(), 1):
        save_images(home / name, n, seed, classes=4)
    labels = np.repeat(np.arange(1, 11, dtype=np.uint8), 2)[:, None]
    scipy.io.savemat(home / "digits.mat", {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": labels})
    server = Server()
    server.files["/plain"] = np.random.default_rng(0).bytes(3_000_000)
    server.files["/archive.tar"] = tarball(
        *[(member(f"Top/{i}.png"), bytes([i]) * 20_000) for i in range(99)]
    )
    given = {
        "archive": Item(
            f"{server.url}/archive.tar", "data/it", md5(server.files["/archive.tar"]), Step.UNPACK
        ),
        "plain": Item(f"{server.url}/plain", "checkpoints/x.pth", md5(server.files["/plain"])),
    }
    patch.setattr(download, "ITEMS", given)
    patch.setattr(download, "GROUPS", {"all": list(given)})
    patch.chdir(home)
    prepare = ("precompute", "--in-data", "train", *NETWORK, "--base-dir", "prepared")
    for words in (
        (*prepare, "--out", "part1.npz", "--shard", "1/2"),
        (*prepare, "--out", "part2.npz", "--shard", "2/2"),
        (*prepare, "--out", "mean.npy"),
        (
            "eval",
            "--in-data",
            "id",
            "--out-datasets",
            "ood=ood",
            "--method",
            "msp",
            *NETWORK,
            "--base-dir",
            "runs",
        ),
    ):
        assert main(words) == 0
    place = Place(home)
    yield place
    server.http.shutdown()
    server.http.server_close()
