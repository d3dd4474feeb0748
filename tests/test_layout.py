"""The rooms of the Python package: who may import whom, and what stays inside the command line."""

import ast
import itertools
import re
from pathlib import Path

import dice

PACKAGE = Path(dice.__file__).parent

# Each imports only what stands before it.
FLOORS = (
    *("errors", "arrays", "console", "io", "data", "madeup", "backbone", "images", "stats", "detectors"),
    *("eval", "cli", "__main__"),
)
THINGS = {
    *("net", "network", "backbone", "images", "image_set", "id_set", "ood_sets", "train", "transform"),
    *("result", "results", "runs", "clock", "cache", "part"),
}


def module_of(path: Path) -> str:
    return ".".join(("dice", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


SOURCES = {module_of(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The modules of the package that `module` imports, inside functions too."""
    found = set()
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in SOURCES else node.module)
    return found & set(SOURCES) - {module}


GRAPH = {module: imports(module) for module in SOURCES}


def circle_through(start: str, graph: dict[str, set[str]]) -> list[str]:
    """A way from `start` back to it, or []."""
    ways, seen = [[start]], set()
    while ways:
        way = ways.pop()
        for module in sorted(graph[way[-1]]):
            if module == start:
                return [*way, start]
            if module not in seen:
                seen.add(module)
                ways.append([*way, module])
    return []


def test_no_files_import_each_other_in_a_circle():
    assert len(GRAPH) > 60 and GRAPH["dice.cli.eval"] >= {"dice.eval.evaluate", "dice.cli.inputs"}
    circles = [way for module in GRAPH if (way := circle_through(module, GRAPH))]
    assert not circles, " -> ".join(circles[0])


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}
    assert circle_through("b", graph) == ["b", "d", "b"] and not circle_through("a", graph)


def test_rooms_import_only_what_is_below_them():
    wrong = []
    for module, other in itertools.chain.from_iterable(((m, o) for o in GRAPH[m]) for m in GRAPH):
        if "dice" in (module, other):  # names of the package itself: its version, the extension
            continue
        here, there = (FLOORS.index(name.split(".")[1]) for name in (module, other))
        if there > here:
            wrong.append(f"{module} imports {other}")
    assert not wrong


def test_the_arguments_of_the_command_line_stay_in_it():
    for module, tree in SOURCES.items():
        if not module.startswith("dice.cli."):
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            modules = {
                alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
            }
            modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert "Namespace" not in names and "argparse" not in modules, module


def test_networks_sets_and_results_have_types():
    untyped = []
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.arg | ast.AnnAssign):
                name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
                words = ast.unparse(node.annotation) if node.annotation else ""
                if name in THINGS and re.fullmatch(r"(\w+\[)?Any\]?( \| None)?", words):
                    untyped.append(f"{module}: {name}: {words}")
    assert not untyped
