"""demo-imagenet.sh, its made-up weights, and --run: several methods, each with its own p and clip, in one
pass."""

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_cli import dice_run, environment, refused
from tiny import save_images

import dice
from dice.errors import InputError
from dice.eval import results
from dice.eval.methods import Method, parse_run
from dice.madeup import made_up_weights

WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data root: four classes, two OOD sets."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, seed in (("train", 1), ("val", 2)):
        folder = save_images(root / "datasets" / "ILSVRC-2012" / split, 4, seed, classes=4)
        for i, wnid in enumerate(WNIDS):
            (folder / f"class{i}").rename(folder / wnid)
    save_images(root / "datasets" / "ood_datasets" / "SUN", 3, 3)
    save_images(root / "datasets" / "ood_datasets" / "dtd" / "images", 2, 4)
    return root


def script(*args, cwd):
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = [Path(__file__).parents[1] / "demo-imagenet.sh", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment(PATH=path), capture_output=True, check=False, text=True, timeout=300
    )


# -- made-up weights


def test_made_up_weights_follow_their_rule():
    weights = made_up_weights("resnet50")
    name = "layer2.0.conv2.weight"
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal((128, 128, 3, 3)) * np.sqrt(
        2 / (128 * 9)
    )
    np.testing.assert_array_equal(weights[name], drawn.astype(np.float32))
    assert (
        sum(value.size for value in weights.values()) == 25_557_032 + 2 * 26_560
    )  # torchvision's count, and running statistics
    assert sum(value.size for value in made_up_weights("BiT-S-R101x1").values()) == 44_541_480
    densenet = made_up_weights("densenet")  # 0.8 million as in its paper, table 2
    assert sum(value.size for name, value in densenet.items() if "running" not in name) == 769_162
    with pytest.raises(InputError, match="vgg"):
        made_up_weights("vgg")


@pytest.mark.slow
@pytest.mark.parametrize("arch, side", [("resnet50", 64), ("BiT-S-R101x1", 64)])
def test_networks_of_made_up_weights_give_usable_features(arch, side):
    net = dice.load_backbone(arch, made_up_weights(arch))
    h, z = net.forward(np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8))
    assert h.shape == (2, 2048) and z.shape == (2, 1000)
    assert 0.1 < h.mean() < 10 and z.std() < 100 and not np.array_equal(h[0], h[1])


def test_weights_can_be_given_as_arrays(tmp_path):
    from tiny import save_densenet

    weights = dict(np.load(save_densenet(tmp_path / "net.npz")))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    given, read = (
        dice.load_backbone("densenet", weights),
        dice.load_backbone("densenet", tmp_path / "net.npz"),
    )
    np.testing.assert_array_equal(given.forward(images)[0], read.forward(images)[0])
    other = dice.load_backbone("densenet", weights | {"fc.bias": weights["fc.bias"] + 1})
    assert given.fingerprint == dice.load_backbone("densenet", weights).fingerprint != other.fingerprint
    with pytest.raises(InputError, match="^weights: "):
        dice.load_backbone("densenet", {"fc.bias": weights["fc.bias"]})


# -- --run


@pytest.mark.parametrize(
    "text, method",
    [
        ("energy", Method("energy")),
        ("dice", Method("dice", 90)),
        ("dice:p=70", Method("dice", 70)),
        ("react:clip=1.5", Method("react", None, 1.5)),
        ("dice+react:p=10,clip=1", Method("dice+react", 10, 1.0)),
        ("dice+react:clip=1,p=10", Method("dice+react", 10, 1.0)),
        ("msp:p=5", Method("msp", 5)),
    ],
)
def test_run_names_one_method_with_its_parameters(text, method):
    assert parse_run(text, default_p=90) == method


@pytest.mark.parametrize(
    "text",
    [
        "",
        "odin",
        "dice:",
        "dice:q=1",
        "dice:p=x",
        "dice:p=1,p=2",
        "dice:p=101",
        "dice:p",
        "react",
        "react:clip=nan",
        "react:clip=0",
    ],
)
def test_other_runs_are_refused(text):
    if text == "dice:":
        assert parse_run(text, default_p=90) == Method("dice", 90)
        return
    with pytest.raises(InputError, match="--run|--method|--p|--clip"):
        parse_run(text, default_p=90)


# -- the script


@pytest.mark.slow
def test_the_script_shows_the_whole_way_with_random_weights(root, tmp_path):
    (root / "cache").mkdir(exist_ok=True)
    np.save(
        root / "cache" / "imagenet_resnet50_feat_stat.npy", np.zeros(2048)
    )  # belongs to the real weights: not to be used
    done = script("--random-weights", "--root", root, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("RANDOM WEIGHTS: these numbers mean nothing") == 5
    assert "\033" not in done.stdout  # no terminal, no colour
    assert "on trust" not in done.stderr and "inat is skipped" in done.stderr
    output = tmp_path / "output" / "ood_scores"
    entries = json.loads((output / "imagenet-resnet50-random.json").read_text())
    assert [(e["method"], e["p"], e["clip"]) for e in entries] == [
        ("energy", None, None),
        ("dice", 70, None),
        ("react", None, 1.0),
        ("dice+react", 10, 1.0),
        ("dice+react", 15, 1.5),
    ]
    for entry in entries:
        assert (entry["weights"], entry["checkpoint"]) == ("random", "random weights of resnet50")
        assert entry["n_id"] == 4 and set(entry["sets"]) == {"dtd", "sun"}
    assert "RANDOM WEIGHTS" in (output / "imagenet-resnet50-random.html").read_text()
    assert (output / "imagenet-resnet50-random.md").read_text().count("RANDOM WEIGHTS") == 1
    assert len(results.find_runs([output])) == 5

    again = script("--random-weights", "--root", root, "--run", "dice:p=80", cwd=tmp_path)
    assert again.returncode == 0 and "all from stored features" in again.stderr
    assert again.stdout.count("OOD detection method: dice p=80") == 1


@pytest.mark.slow
def test_with_weights_in_place_nothing_else_is_needed(root, tmp_path):
    here = shutil.copytree(root, tmp_path / "root")
    shutil.rmtree(here / "cache", ignore_errors=True)
    (here / "checkpoints").mkdir()
    with open(
        here / "checkpoints" / "resnet50-0676ba61.pth", "wb"
    ) as file:  # what is in a file is told by its content
        np.savez(file, **made_up_weights("resnet50"))
    done = script("--root", here, "--run", "dice:p=70", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RANDOM" not in done.stdout
    output = tmp_path / "output" / "ood_scores"
    entry = json.loads((output / "imagenet-resnet50.json").read_text())[0]
    assert "weights" not in entry and entry["checkpoint"].endswith("resnet50-0676ba61.pth")
    done = dice_run(
        "eval",
        "--in-dataset",
        "imagenet",
        "--arch",
        "resnet50",
        "--name",
        "resnet50",
        "--root",
        here,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "all from stored features" in done.stderr, done.stderr


def test_without_weights_it_says_what_is_needed(root, tmp_path):
    flags = ["--random-weights", "--root", tmp_path]
    refused(
        script("--root", root, cwd=tmp_path),
        "resnet50-19c8e357.pth",
        "resnet50-0676ba61.pth",
        "https://",
        "--random-weights",
    )
    refused(script("--root", root, "--arch", "BiT-S-R101x1", cwd=tmp_path), "BiT-S-R101x1.npz", "https://")
    refused(script("--root", root, "--arch", "vgg16", cwd=tmp_path), "vgg16", "resnet50")
    refused(script(*flags, cwd=tmp_path), "ILSVRC-2012")
