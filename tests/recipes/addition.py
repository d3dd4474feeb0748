"""What a recipe of CONTRIBUTING.md is tried with: a small addition to the tree."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Puts text before or after `anchor`, or in its place. `anchor` occurs exactly once in `file`."""

    file: str
    anchor: str
    before: str = ""
    after: str = ""
    instead: str | None = None

    def apply(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text("utf-8")
        found = text.count(self.anchor)
        assert found == 1, (
            f"{self.file} holds this {found} times, and the addition in tests/recipes relies on one:\n"
            f"{self.anchor}"
        )
        kept = self.anchor if self.instead is None else self.instead
        path.write_text(text.replace(self.anchor, self.before + kept + self.after), "utf-8")


@dataclass(frozen=True)
class Addition:
    """The files that somebody who follows `recipe` changes and adds, and how the result is checked.

    names: what the recipe's placeholders stand for: {"<family>": "stamp"}.
    new: path -> text.
    checks: arguments of Python, run in the changed tree; each must exit with 0.
    """

    recipe: str
    edits: list[Edit]
    checks: list[list[str]]
    new: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def files(self) -> set[str]:
        return {edit.file for edit in self.edits} | set(self.new)

    def apply(self, root: Path) -> None:
        for file, text in self.new.items():
            assert not (root / file).exists(), f"{file} is there already"
            (root / file).parent.mkdir(exist_ok=True)
            (root / file).write_text(text, "utf-8")
        for edit in self.edits:
            edit.apply(root)


def tests(file: str, keywords: str) -> list[str]:
    """The tests of tests/`file` that `keywords` choose, as arguments of Python."""
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}", "-k", keywords]
