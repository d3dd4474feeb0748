"""The shape of the sources: no circles between files, arrows between folders in one direction only.

A Python file points to what it imports, wherever in it the import stands. In C a file `x.c` and its header
`x.h` are one; they point to what they include and to the files whose functions and tables they name.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
SOURCES = (".c", ".cu")  # files that can call functions; headers only declare them

# Folders of csrc that are not named in C_LAYERS are back ends, as cpu and cuda are.
BACK_ENDS = sorted(
    {path.name for path in CSRC.iterdir() if path.is_dir()}
    - {"base", "linalg", "nn", "backend", "ood", "python", "tests"}
)

# A folder may use itself and what is listed, nothing else; each line lists folders of earlier lines only.
C_LAYERS = {
    "base": set(),
    "linalg": {"base"},
    "nn": {"base"},
    "backend": {"base", "nn"},
    **dict.fromkeys(BACK_ENDS, {"base", "nn", "backend"}),
    "ood": {"base", "linalg", "backend"},
    "python": {"base", "linalg", "nn", "backend", "cpu", "ood"},
    "tests": {"base", "linalg", "nn", "backend", "cpu"},
}
PYTHON_LAYERS = {
    "": set(),  # the modules of `dice` itself: errors, arrays, console, made-up weights
    "io": {""},
    "backbone": {"", "io"},
    "data": set(),
    "images": {"", "io", "data"},
    "stats": {"", "io", "backbone"},
    "detectors": {"", "io", "backbone", "stats"},
    "eval": {"", "io", "backbone", "images", "stats", "detectors"},
    "cli": {"", "io", "backbone", "data", "images", "stats", "detectors", "eval"},
}
ROOMS_OF_THEIR_OWN = {"backbone.py": "backbone", "__main__.py": "cli"}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of files that reach each other, and the files with an arrow to themselves."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        todo = list(arrows[start])
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += arrows.get(node, ())
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in arrows if a in reach[a]}
    return sorted(sorted(group) for group in groups)


def python_files() -> dict[str, Path]:
    """Dotted name -> file."""
    files = {}
    for path in sorted((ROOT / "dice").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def python_arrows() -> dict[str, set[str]]:
    files = python_files()
    arrows: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [full if full in files else str(node.module) for full in inner]
            arrows[name] |= {target for target in wanted if target in files}
    return arrows


def c_units() -> dict[str, list[Path]]:
    """Path below csrc without its ending -> its files."""
    units: dict[str, list[Path]] = {}
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in (".c", ".h", ".cu", ".cuh", ".cpp"):
            units.setdefault(str(path.relative_to(CSRC).with_suffix("")), []).append(path)
    return units


def c_code(path: Path) -> str:
    """The text without comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text("utf-8"), flags=re.S)
    return re.sub(r'(?<!include )"(\\.|[^"\\\n])*"', '""', text)


TABLE = re.compile(r"^const \w+ (dice_\w+) = \{", re.M)
DEFINITION = re.compile(
    r"^(?!static\b|typedef\b|extern\b|template\b)[A-Za-z_][\w \t*]*?\b(\w+)\([^;{}]*\)\s*\{", re.M
)


def c_arrows(*, calls: bool) -> dict[str, set[str]]:
    units = c_units()
    code = {path: c_code(path) for paths in units.values() for path in paths}
    # exported function or table -> the unit that defines it; in C the names begin with dice_
    home: dict[str, str] = {}
    for unit, paths in units.items():
        for path in paths:
            if path.suffix in SOURCES and "/emulation" not in unit:
                names = [*DEFINITION.findall(code[path]), *TABLE.findall(code[path])]
                home |= {name: unit for name in names if name.startswith("dice_") or path.suffix == ".cu"}
    arrows: dict[str, set[str]] = {unit: set() for unit in units}
    for unit, paths in units.items():
        for path in paths:
            for included in re.findall(r'#include "([^"]+)"', path.read_text("utf-8")):
                for base in (CSRC, path.parent, CSRC / "cuda/device", CSRC / "cuda/emulation"):
                    if (base / included).is_file():
                        target = str((base / included).resolve().relative_to(CSRC).with_suffix(""))
                        arrows[unit] |= {target} - {unit}
                        break
            if calls and path.suffix in SOURCES and "/emulation" not in unit:
                names = set(re.findall(r"\b\w+", code[path])) & home.keys()
                known = {name for name in names if name.startswith("dice_") or path.suffix == ".cu"}
                arrows[unit] |= {home[name] for name in known} - {unit}
    return arrows


def test_no_python_files_import_each_other_in_a_circle():
    assert circles(python_arrows()) == []


def test_no_c_files_include_or_call_each_other_in_a_circle():
    assert circles(c_arrows(calls=True)) == []


def test_the_search_for_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}) == [["a", "b", "c"], ["e"]]
    assert "dice.errors" in python_arrows()["dice.arrays"]
    assert "base/memory" in c_arrows(calls=True)["nn/graph"]


# chooses among the back ends at run time, whose tables backend.h declares
CHOICE = "backend/registry"


def test_arrows_between_c_folders_point_down():
    for unit, targets in c_arrows(calls=True).items():
        folder = unit.partition("/")[0]
        for target in targets:
            other = target.partition("/")[0]
            allowed = other == folder or other in C_LAYERS[folder] or unit == CHOICE
            assert allowed, f"csrc/{unit} uses csrc/{target}"


def folder_of(name: str) -> str:
    """The folder below dice/ of a module or package; "" for dice/ itself."""
    path = python_files()[name].relative_to(ROOT / "dice")
    return path.parts[0] if len(path.parts) > 1 else ROOMS_OF_THEIR_OWN.get(path.name, "")


def test_arrows_between_python_folders_point_down():
    for name, targets in python_arrows().items():
        folder = folder_of(name)
        for target in targets:
            other = folder_of(target)
            assert other == folder or other in PYTHON_LAYERS[folder], f"{name} imports {target}"


@pytest.mark.parametrize("layers", [C_LAYERS, PYTHON_LAYERS])
def test_the_layers_are_in_order(layers):
    known: set[str] = set()
    for folder, below in layers.items():
        assert below <= known, folder
        known.add(folder)


def test_only_the_binding_knows_python():
    for path in CSRC.rglob("*"):
        if path.is_file() and "python" not in path.relative_to(CSRC).parts:
            assert "Python.h" not in re.findall(r"#include [<\"]([^>\"]+)", path.read_text("utf-8")), path


def test_only_the_command_line_knows_namespaces():
    for name, path in python_files().items():
        if not name.startswith("dice.cli"):
            assert not re.search(r"\b(Namespace|argparse)\b", path.read_text("utf-8")), path


THINGS = {
    "net",
    "network",
    "backbone",
    "images",
    "image_set",
    "id_set",
    "ood_sets",
    "train",
    "transform",
    "result",
    "results",
    "entry",
    "entries",
    "run",
    "runs",
    "clock",
    "cache",
    "part",
}


def test_no_network_set_or_result_is_untyped():
    for name, path in python_files().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.arg | ast.AnnAssign):
                variable = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
                words = ast.unparse(node.annotation) if node.annotation else ""
                untyped = re.fullmatch(r"(\w+\[)*Any\]*( \| None)?", words)
                assert variable not in THINGS or not untyped, f"{name}: {variable}: {words}"
