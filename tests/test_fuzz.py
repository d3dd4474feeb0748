"""The targets of the fuzzing: seeds are taken; what was once found, and small changes of seeds, are taken or
refused in one line. `tests/fuzz/run.py` fuzzes for as long as one likes."""

import random

import pytest
from fuzz import forge
from fuzz.run import known
from fuzz.targets import TARGETS, one

import dice.io

CHANGES = 150  # tried of each target, with fixed seeds
PASSED_OVER = ("features", "index")  # whose bad files are no refusal: what they would spare is computed


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken_by_their_reader(name, tmp_path):
    seeds = TARGETS[name].seeds()
    assert seeds and [seed for seed in seeds if not one(TARGETS[name], tmp_path, seeds[seed])] == []


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_taken_or_refused_in_one_line(name, tmp_path):
    target, rng = TARGETS[name], random.Random(name)
    seeds, taken = list(target.seeds().values()), 0
    for number in range(CHANGES):
        change = target.change if target.change and number % 2 else forge.change_bytes
        taken += one(target, tmp_path, change(rng.choice(seeds), rng))
    assert taken < CHANGES or name in PASSED_OVER, "no change was noticed"


@pytest.mark.parametrize("name", [name for name in TARGETS if known(name)])
def test_what_was_once_found_holds(name, tmp_path):
    for data in known(name).values():
        one(TARGETS[name], tmp_path, data)


def test_every_public_reader_has_a_target():
    used = {target.read for target in TARGETS.values()}
    names = {name for read in used for name in (read.__name__, *read.__code__.co_names)}
    readers = {name for name in dice.io.__all__ if name.startswith("read_")} | {"NpyFile"}
    assert readers <= names


def test_repairs_repair(tmp_path):
    """A value changed in a part of an archive, or in an array of a detector, gets past the checksums."""
    for name, seed, old, new in (
        ("npz", "stored", b"\0\0\x80?", b"\0\0\0@"),
        ("torch_zip", "two", b"\0\0\x80?", b"\0\0\0@"),
        ("detector", "msp", b'"cifar"', b'"other"'),
    ):
        target = TARGETS[name]
        data = target.seeds()[seed]
        assert old in data and one(target, tmp_path, data.replace(old, new)), name
