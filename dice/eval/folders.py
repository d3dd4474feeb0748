"""Where features, statistics and results are kept under --base-dir.

features/<network>/<set>-<identity>/manifest.json, 00000000-00001024.npz ...   (shared by every method)
statistics/<network>/<set>-<identity>.npz
<ID set>/<method>/<name>/<checkpoint>-<precision>-<ID identity>/
    run.json, in_scores.txt, in_labels.txt, <OOD set>-<identity>/out_scores.txt
"""

import hashlib
import re
from pathlib import Path

from dice.backbone import Backbone
from dice.images.imagesets import ImageSet

__all__ = ["features_folder", "network_folder", "run_folder", "safe_name", "set_folder", "statistics_stem"]

_LONGEST = 180  # bytes; file systems take 255, and temporary names are longer
_SHORT = 12  # hex digits of a hash in a folder's name; the whole hash is in manifest.json and run.json


def safe_name(text: str) -> str:
    """`text` as one path component; what is too long for one ends in a hash of it all."""
    name = re.sub(r"[^\w.+-]+", "_", text).lstrip(".") or "_"
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_SHORT]
    return f"{name.encode()[: _LONGEST - _SHORT - 1].decode(errors='ignore')}-{digest}"


def network_folder(net: Backbone, name: str) -> str:
    return safe_name(f"{name}-{net.fingerprint[:_SHORT]}-{net.precision}-{net.device}-{net.isa}")


def set_folder(name: str, identity: str) -> str:
    return safe_name(f"{name}-{identity[:_SHORT]}")


def features_folder(base: Path, net: Backbone, name: str, images: ImageSet) -> Path:
    """Where the features of `images` under `net` are kept; `name` is what the user calls the network."""
    return base / "features" / network_folder(net, name) / set_folder(images.name, images.identity)


def statistics_stem(base: Path, net: Backbone, name: str, images: ImageSet) -> Path:
    """Where the statistics of `images` under `net` are kept, without a suffix."""
    return base / "statistics" / network_folder(net, name) / set_folder(images.name, images.identity)


def run_folder(base: Path, in_dataset: str, method: str, name: str, net: Backbone, id_identity: str) -> Path:
    """Where one method's scores are kept: another folder for every method, p, clip, checkpoint, precision and
    ID set. method: its label; name: what the user calls the network."""
    run = f"{net.fingerprint[:_SHORT]}-{net.precision}-{id_identity[:_SHORT]}"
    return base / safe_name(in_dataset) / safe_name(method) / safe_name(name) / run
