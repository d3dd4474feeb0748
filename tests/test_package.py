"""What the package is as a whole: its imports, its stubs, the files that are shipped."""

import ast
import re
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import dice
from dice import _core

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(dice.__file__).parents[1]


def python(*arguments: str, cwd: Path = HOME) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


def tracked(*patterns: str) -> set[str]:
    """The files of the repository; skips where this is none."""
    done = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not done.stdout:
        pytest.skip("not a git checkout")
    return set(done.stdout.splitlines())


def test_import_is_lazy():
    loaded = set(python("-c", "import dice, sys; print(*sys.modules)").split())
    assert not loaded & {"numpy", "scipy", "PIL", "tqdm", "dice._core"}


@pytest.mark.slow
def test_import_costs_at_most_twice_numpy():
    def cost(module):
        start = time.perf_counter()
        python("-c", f"import {module}")
        return time.perf_counter() - start

    runs = [(cost("dice"), cost("numpy")) for _ in range(5)]
    ours, numpys = (statistics.median(times) for times in zip(*runs, strict=True))
    assert ours <= 2 * numpys


def test_every_public_name_resolves():
    for name in dice.__all__:
        assert getattr(dice, name) is not None


def test_stubs_name_what_the_extension_has():
    stub = ast.parse((Path(dice.__file__).parent / "_core.pyi").read_text())
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    there = {name for name in vars(_core) if not name.startswith("__")}
    assert functions | set(classes) == there
    for name, node in classes.items():
        members = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        members |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        assert {member for member in members if not member.startswith("__")} == {
            member for member in vars(getattr(_core, name)) if not member.startswith("__")
        }


def test_installed_package_has_every_file():
    shipped = {name for name in tracked("dice") if not name.endswith(".gitignore")}
    assert shipped
    missing = {name for name in shipped if not (HOME / name).exists()}
    assert not missing


@pytest.mark.slow
def test_sdist_has_everything(tmp_path):
    pytest.importorskip("setuptools")
    wanted = {name for name in tracked() if not name.startswith(".git") and (ROOT / name).exists()}
    python(
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(tmp_path),
        "sdist",
        "--formats=gztar",
        "--dist-dir",
        str(tmp_path),
        cwd=ROOT,
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not wanted - names
    assert not [name for name in names if name.endswith((".so", ".o")) or "_vendor" in name]


def test_ci_runs_the_test_line_of_the_readme():
    line = next(
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("test_line=")
    )
    assert line.removeprefix("test_line=").strip('"') in (ROOT / "README.md").read_text()


def test_no_line_of_code_needs_scrolling():
    """In any language but Python, where ruff looks (E501)."""
    code = tracked("csrc", "*.sh", ".ci", "CMakeLists.txt", "pyproject.toml")
    wide = [
        f"{name}:{number}"
        for name in sorted(code)
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if len(line) > 110
    ]
    assert not wide


def test_every_recipe_names_at_most_five_files_and_they_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipes = re.findall(
        r"^\*\*(.+?)\.\*\*\n(.+?)\n\n", text.partition("## Recipes")[2], re.MULTILINE | re.DOTALL
    )
    assert {"An op", "A network", "A score", "A data set", "A back end"} <= {name for name, _ in recipes}
    for name, words in recipes:
        files = re.findall(r"`((?:csrc|dice|tests|datasets)/[^`]+|CMakeLists\.txt)`", words)
        assert 2 <= len(files) <= 5, name
        for file in files:
            assert "<" in file or (ROOT / file).exists(), file


def test_the_module_map_is_complete():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {
        name for name in tracked("dice/*.py") if not Path(name).name.startswith("_") and name.count("/") == 1
    }
    assert not [name for name in modules if f"`{name}`" not in text]


def test_the_readme_names_commands_that_exist():
    commands = set(re.findall(r"^    ([a-z-]+)", python("-m", "dice", "--help"), re.MULTILINE))
    named = set(re.findall(r"`dice ([a-z][a-z-]*)", (ROOT / "README.md").read_text()))
    assert named and named <= commands
