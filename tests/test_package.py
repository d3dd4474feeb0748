"""The package as a whole: its imports, its stubs, and the files that are shipped."""

import ast
import inspect
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

REQUIRED = inspect.Parameter.empty


def python(*arguments: str, cwd: Path = HOME) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


def tracked(*patterns: str) -> set[str]:
    """The files of the repository; skips where this is no repository."""
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


def of_module(node: ast.ClassDef) -> bool:
    """Whether this is a class of the extension, and not a type that only the stub has."""
    return any(isinstance(item, ast.Name) and item.id == "final" for item in node.decorator_list)


def parameters_of_stub(node: ast.FunctionDef) -> list[tuple[str, str, object]]:
    """(name, kind, default) of each parameter but self and cls, as `parameters_of` gives them."""
    args = node.args
    by_place = [(arg.arg, "positional-only") for arg in args.posonlyargs]
    by_place += [(arg.arg, "positional or keyword") for arg in args.args]
    defaults = [REQUIRED] * (len(by_place) - len(args.defaults)) + list(map(ast.literal_eval, args.defaults))
    found = [(*pair, default) for pair, default in zip(by_place, defaults, strict=True)]
    found += [(args.vararg.arg, "variadic positional", REQUIRED)] if args.vararg else []
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append((arg.arg, "keyword-only", REQUIRED if default is None else ast.literal_eval(default)))
    return [parameter for parameter in found if parameter[0] not in ("self", "cls")]


def parameters_of(value: object) -> list[tuple[str, str, object]]:
    return [
        (name, parameter.kind.description, parameter.default)
        for name, parameter in inspect.signature(value).parameters.items()
        if name != "self"
    ]


def test_stubs_are_what_the_extension_has():
    stub = ast.parse((Path(dice.__file__).parent / "_core.pyi").read_text())
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef) and of_module(node)}
    there = {name for name in vars(_core) if not name.startswith("__")}
    assert set(functions) | set(classes) == there
    pairs = [(node, getattr(_core, name)) for name, node in functions.items()]
    for name, node in classes.items():
        made = getattr(_core, name)
        methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
        attributes = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        members = {member for member in (*methods, *attributes) if not member.startswith("__")}
        assert members == {member for member in vars(made) if not member.startswith("__")}
        pairs += [
            (method, made if item == "__new__" else getattr(made, item)) for item, method in methods.items()
        ]
    for node, value in pairs:
        assert parameters_of_stub(node) == parameters_of(value), node.name
        assert value.__doc__, f"{node.name} has no docstring"


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
    """In all languages but Python, where ruff checks the lines (E501)."""
    code = tracked("csrc", "*.sh", ".ci", "CMakeLists.txt", "pyproject.toml")
    wide = [
        f"{name}:{number}"
        for name in sorted(code)
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if len(line) > 110
    ]
    assert not wide


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
