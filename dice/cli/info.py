"""`dice info`: the build, this machine, and which data is there."""

import os
import platform
from argparse import Namespace
from pathlib import Path

import numpy as np

import dice
from dice import _core
from dice.backbone import Backbone, load_backbone
from dice.cli import inputs
from dice.console import say
from dice.errors import InputError
from dice.images import datasets
from dice.madeup import weight_shapes


def run(args: Namespace) -> int:
    build = _core.build_info()
    no_gpu, plugin = _core.cuda_status()
    rows = {
        "dice": f"{dice.__version__} at {Path(dice.__file__).parent}",
        "python": f"{platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
        "instruction set": f"{_core.isa_select()} (this machine's best: {_core.isa_native()})",
        "precision": "float32, bf16x3 and bf16 by "
        + (
            "the tile unit"
            if _core.isa_select() == "amx"
            else "FMA: float32 is native, the others round the operands and gain no speed here"
        ),
        "threads": str(_core.threads_count()),
        **{key.replace("_", " "): value for key, value in build.items() if value},
        "cuda": f"{no_gpu or 'ready'} ({plugin}; {build['cuda']})",
        "environment": " ".join(
            f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("DICE_")
        )
        or "no DICE_*",
        "data root": str(Path(args.root).resolve()),
    }
    for arch, batch in (("densenet", 64), ("resnet50", 8)):
        zeros = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(arch).items()}
        rows[f"{arch}, batch {batch}"] = network_memory(load_backbone(arch, zeros))
    for key, value in rows.items():
        say(f"{key:18s} {value}")
    for name in datasets.known_sets():
        try:
            say(f"  {name:14s} {len(datasets.open_set(name, args.root))} images")
        except InputError as reason:
            say(f"  {name:14s} {'missing' if isinstance(reason, datasets.MissingSet) else reason}")
    for in_dataset in inputs.CIFAR:
        path = inputs.default_checkpoint(args.root, in_dataset)
        try:
            state = load_backbone(None, path).arch if path.is_file() else "missing"
        except InputError as reason:
            state = str(reason)
        say(f"  {in_dataset} densenet checkpoint {state}")
    return 0


def network_memory(net: Backbone) -> str:
    """The memory that a network takes beside its images, in words; it is the same for every batch size."""
    net.forward(np.zeros((1, net.image_size, net.image_size, 3), np.uint8))
    arena, weights = (net.info()[name] / 1e6 for name in ("arena_bytes", "weight_bytes"))
    return f"{arena:.1f} MB for activations, {weights:.1f} MB of packed weights"
