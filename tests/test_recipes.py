"""The recipes of CONTRIBUTING.md are true: each is followed with a small addition, in a copy of the tree.

The additions are in tests/recipes. Where an edit no longer fits the code, mend the edit, as in a branch that
is brought up to date; where it then needs a file that the recipe does not name, mend the recipe or the code.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recipes import back_end, data_set, network, op, op_on_cpu, op_on_gpu, score
from recipes.addition import Addition

ROOT = Path(__file__).resolve().parents[1]

# Built one after the other: an op is there before any fast back end runs it.
STAGES: list[list[Addition]] = [
    [op.ADDITION, network.ADDITION, score.ADDITION, data_set.ADDITION, back_end.ADDITION],
    [op_on_cpu.ADDITION, op_on_gpu.ADDITION],
]
EACH = [(stage, addition) for stage, additions in enumerate(STAGES) for addition in additions]
IDS = [addition.recipe for _, addition in EACH]


def recipes() -> dict[str, list[str]]:
    """The files that each recipe names, with placeholders; a folder ends with a slash."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition("## Recipes\n")[2].partition("## ")[0]
    found = re.findall(r"^\*\*(.+?)\.\*\*\n(.+?)\n\n", section, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"`((?:csrc|dice|tests|datasets)/[^`]+)`", words) for name, words in found}


def copy_tree(to: Path) -> Path:
    """The files of this checkout, without those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def test_every_recipe_is_tried():
    assert sorted(recipes()) == sorted(IDS)


@pytest.mark.parametrize("addition", [addition for _, addition in EACH], ids=IDS)
def test_a_recipe_names_the_files_that_it_takes(addition):
    named = recipes()[addition.recipe]
    for placeholder, name in addition.names.items():
        named = [file.replace(placeholder, name) for file in named]
    assert 2 <= len(named) <= 5
    rooms = {next((n for n in named if file.startswith(n)), file) for file in addition.files()}
    assert rooms == set(named)
    for file in set(named) - set(addition.new):
        assert file.endswith("/") or (ROOT / file).exists(), file


def test_the_additions_fit_the_code(tmp_path):
    copy_tree(tmp_path)
    for _, addition in EACH:
        addition.apply(tmp_path)


class Tree:
    """A copy of the tree, to which the additions are made stage by stage."""

    def __init__(self, root: Path):
        self.root = copy_tree(root)
        self.stage = -1

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        from building import environment

        env = environment(
            PYTHONPATH=f"{self.root}:{self.root / 'tests'}",
            DICE_CUDA="off",
            DICE_WERROR="1",
            DICE_SANITIZE=None,
            DICE_ISA=None,
            DICE_CUDA_PLUGIN=None,
        )
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.root, env=env, capture_output=True, text=True, check=False
        )

    def build(self, stage: int) -> None:
        """Makes the additions up to `stage` and builds, unless that is done."""
        from building import MISSING

        if stage <= self.stage:
            return
        for additions in STAGES[self.stage + 1 : stage + 1]:
            for addition in additions:
                addition.apply(self.root)
        self.stage = stage
        done = self.python("setup.py", "-q", "build_ext", "--inplace")
        said = done.stdout + done.stderr
        if missing := MISSING.search(" ".join(said.split())):
            pytest.skip(missing[0])
        assert done.returncode == 0, said
        where = self.python("-c", "from dice import _core; print(_core.__file__)").stdout
        assert Path(where.strip()).parent == self.root / "dice"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "addition"), EACH, ids=IDS)
def test_the_addition_works(stage, addition, tree, shared, monkeypatch):
    from building import MISSING

    monkeypatch.setenv("DICE_TEST_SHARED", str(shared))
    tree.build(stage)
    for check in addition.checks:
        done = tree.python(*check)
        assert done.returncode == 0, done.stdout + done.stderr
        if "pytest" in check and " passed" not in done.stdout:  # all were skipped
            missing = MISSING.search(" ".join(done.stdout.split()))
            assert missing, done.stdout
            pytest.skip(missing[0])
