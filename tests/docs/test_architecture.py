"""docs/explanation/architecture.md draws the rooms of the code and the imports between them.

The drawing leaves out an arrow that follows from others: with app/cli → app/server → app/factory it
needs no app/cli → app/factory.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PACKAGES = ("app", "pipelines", "backends")

Arrows = set[tuple[str, str]]
"""(room that imports, room that is imported), as app/http and pipelines/pipeline."""


def rooms() -> set[str]:
    """Return the folders and modules at the first level of each package."""
    return {
        f"{package}/{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem != "__init__")
    }


def imports_between(known: set[str]) -> Arrows:
    """Return the imports between rooms of a package, also those in functions and for types."""
    arrows: Arrows = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            here = "/".join(parts[:2])
            if here not in known:
                continue  # the package's own __init__.py
            for name in imported_names(ast.parse(path.read_text()), parts[:-1]):
                there = "/".join(name[:2])
                if there in known and there != here and name[0] == package:
                    arrows.add((here, there))
    return arrows


def imported_names(tree: ast.AST, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return what a module imports, as paths: ("app", "http", "errors", "STATUSES")."""
    names: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            names += [(*base, *module, alias.name) for alias in node.names]
    return [name[1:] if name[0] == "penstock" else name for name in names]


def reachable(arrows: Arrows, start: str) -> set[str]:
    """Return the rooms at the end of a path of arrows from `start`."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        room = waiting.pop()
        following = {there for here, there in arrows if here == room} - reached
        reached |= following
        waiting += following
    return reached


def fewest(arrows: Arrows) -> Arrows:
    """Return the arrows without those that follow from others; arrows within a cycle all stay."""
    within = {here: reachable(arrows, here) for here, _ in arrows}

    def follows(here: str, there: str) -> bool:
        return here not in within.get(there, ()) and any(
            there in within.get(other, ()) and here not in within.get(other, ())
            for start, other in arrows
            if start == here and other != there
        )

    return {arrow for arrow in arrows if not follows(*arrow)}


def drawn() -> tuple[set[str], Arrows]:
    """Return the rooms and arrows of the drawing. The node app_http is the room app/http."""
    (drawing,) = re.findall(r"^```mermaid\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    def room(name: str) -> str:
        return name.replace("_", "/", 1)

    nodes = re.findall(r"^\s*(\w+)\[", drawing, re.MULTILINE)
    arrows: Arrows = set()
    for source, targets in re.findall(r"^\s*(\w+) --> (\w+(?: & \w+)*)$", drawing, re.MULTILINE):
        arrows |= {(room(source), room(target)) for target in targets.split(" & ")}
    return {room(name) for name in nodes}, arrows


def test_the_drawing_has_every_room() -> None:
    nodes, arrows = drawn()
    assert nodes == rooms()
    assert {room for arrow in arrows for room in arrow} <= nodes


def test_the_drawing_has_every_arrow() -> None:
    expected = fewest(imports_between(rooms()))
    _, arrows = drawn()
    assert arrows == expected, "draw these arrows:\n" + lines(expected)


def lines(arrows: Arrows) -> str:
    """Write the arrows as lines of the drawing."""
    targets: dict[str, list[str]] = {}
    for here, there in sorted(arrows):
        targets.setdefault(here.replace("/", "_"), []).append(there.replace("/", "_"))
    return "\n".join(f"    {here} --> {' & '.join(there)}" for here, there in targets.items())


def test_every_room_has_a_sentence() -> None:
    text = PAGE.read_text()
    for room in rooms():
        package, name = room.split("/")
        written = f"`{name}/`" if (ROOT / package / name).is_dir() else f"`{name}`"
        assert re.search(rf"^\| {re.escape(written)}[ ,]", text, re.MULTILINE), (
            f"{room} has no row in {PAGE.name}"
        )


@pytest.mark.parametrize(
    ("arrows", "expected"),
    [
        ({("a", "b"), ("b", "c"), ("a", "c")}, {("a", "b"), ("b", "c")}),
        ({("a", "b"), ("a", "c")}, {("a", "b"), ("a", "c")}),
        ({("a", "b"), ("b", "a"), ("a", "c")}, {("a", "b"), ("b", "a"), ("a", "c")}),
    ],
)
def test_only_arrows_that_follow_from_others_are_left_out(arrows: Arrows, expected: Arrows) -> None:
    assert fewest(arrows) == expected
