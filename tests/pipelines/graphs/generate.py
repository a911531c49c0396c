"""Strategies: configurations of graphs that load, and items for them."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from .behaviour import ACTS, CHANGES, FILTERS, VERDICTS, Request
from .reference import Item, Reference, read

Tables = dict[str, dict[str, Any]]

BUILTIN = (
    "Run",
    "Skip",
    "SerialSkip",
    "SubGraphSkip",
    "Break",
    "Error",
    "or",
    "filter",
    "swap",
    "result2other",
    "else",
    "if",
    "skip",
    "Continue",
)
SAID = (
    "Run",
    "Run",
    "Skip",
    "SerialSkip",
    "SubGraphSkip",
    "Break",
    "Error",
    "run",
    "subgraph_skip",
    "nonsense",
)
MAPPED_KEYS = ("result", "result", "result", "data", "data", "x", "k")


@st.composite
def configurations(draw: st.DrawFn, roots: int = 3, least: int = 1) -> Tables:
    """Draw one to ten nodes below one or several roots.

    Composites below one root may enter the graph of a later root.
    """
    sizes = draw(st.lists(st.integers(least, 10), min_size=1, max_size=roots))
    names = draw(st.permutations("abcdefghij"))[: sum(sizes)]
    groups: list[list[str]] = []
    while names:
        groups.append(names[: sizes[len(groups)]])
        names = names[len(groups[-1]) :]
    tables: Tables = {}
    for place, group in enumerate(groups):
        others = [other[0] for other in groups[place + 1 :]]
        for index, name in enumerate(group):
            table = tables[name] = draw(backends(others))
            if index:
                last = st.lists(
                    st.sampled_from(group[max(0, index - 3) : index]),
                    min_size=1,
                    max_size=3,
                    unique=True,
                )
                before = draw(st.just(group[index - 1 : index]) | last)  # chains, and what is wider
                _connect(draw, tables, group[:index], before, name)
            if index and "jump" not in table and draw(st.integers(0, 7)) == 0:
                _share(draw, tables, table)
    tables = _with_logical_nodes(draw, tables)
    return {name: tables[name] for name in draw(st.permutations(list(tables)))}


@st.composite
def backends(draw: st.DrawFn, roots: list[str]) -> dict[str, Any]:
    kind = (
        draw(st.sampled_from(["Worker"] * 4 + ["Jump", "MapReduce", "MapReduce"]))
        if roots
        else "Worker"
    )
    if kind == "Worker":
        return {
            "backend": kind,
            "max": draw(st.integers(1, 4)),
            "instance_num": draw(st.sampled_from([1, 1, 1, 2])),
        }
    table = {"backend": kind, "jump": draw(st.sampled_from(roots))}
    if kind == "MapReduce":
        table |= draw(
            st.sampled_from([{}, {}, {}, {"split": "x"}, {"merge": "result,k"}, {"merge": "data"}])
        )
    return table


def _connect(
    draw: st.DrawFn, tables: Tables, earlier: list[str], before: list[str], name: str
) -> None:
    for other in before:
        tables[other]["next"] = ",".join(filter(None, (tables[other].get("next"), name)))
    if len(before) > 1 or draw(st.integers(0, 3)) == 0:
        tables[name]["map"] = draw(maps(ancestors(tables, name)))
    kind = draw(st.sampled_from(["none", "none", "none", "registered", "registered", "builtin"]))
    if kind == "registered":
        tables[name]["filter"] = draw(st.sampled_from(sorted(FILTERS)))
    elif kind == "builtin":
        tables[name]["filter"] = draw(st.sampled_from(BUILTIN))


def ancestors(tables: Tables, name: str) -> list[str]:
    names: dict[str, None] = {}  # as an ordered set
    for other, table in tables.items():
        if name in table.get("next", "").split(","):
            names |= dict.fromkeys((other, *ancestors(tables, other)))
    return list(names)


@st.composite
def maps(draw: st.DrawFn, sources: list[str]) -> str:
    taken: dict[str, list[str]] = {}
    targets = [
        "data",
        *draw(st.lists(st.sampled_from(["x", "y", "k", "result"]), max_size=2, unique=True)),
    ]
    for target in targets:
        source = draw(st.sampled_from([*sources, *sources, ""]))
        taken.setdefault(source, []).append(f"{draw(st.sampled_from(MAPPED_KEYS))}:{target}")
    return ",".join(f"{source}[{','.join(pairs)}]" for source, pairs in taken.items())


def _share(draw: st.DrawFn, tables: Tables, table: dict[str, Any]) -> None:
    """Make it a node that borrows the instances of another node."""
    lenders = [
        name
        for name, other in tables.items()
        if other is not table and other.get("backend") == "Worker"
    ]
    if lenders:
        for key in ("backend", "max", "instance_num"):
            table.pop(key)
        table["borrow_from"] = draw(st.sampled_from(lenders))


def _with_logical_nodes(draw: st.DrawFn, tables: Tables) -> Tables:
    """Make some nodes logical nodes of others: `c` becomes `a.2`."""
    owners = [name for name, table in tables.items() if table.get("backend") == "Worker"]
    lent = {table.get("borrow_from") for table in tables.values()} | {
        table.get("jump") for table in tables.values()
    }
    new: dict[str, str] = {}
    for number, name in enumerate(owners[1:]):
        if name not in lent and draw(st.integers(0, 9)) == 0:
            owner = draw(
                st.sampled_from([other for other in owners if other != name and other not in new])
            )
            new[name] = f"{owner}.{number}"
            lent.add(owner)
    renamed: Tables = {}
    for name, table in tables.items():
        table = {
            key: value
            for key, value in table.items()
            if name not in new or key not in ("backend", "max", "instance_num")
        }
        for key in ("next", "map"):
            if key in table:
                table[key] = _rename(table[key], new)
        renamed[new.get(name, name)] = table
    return renamed


def _rename(text: str, new: dict[str, str]) -> str:
    inside = 0
    renamed = ""
    for character in text:
        inside += {"[": 1, "]": -1}.get(character, 0)
        renamed += new.get(character, character) if not inside else character
    return renamed


@st.composite
def items(draw: st.DrawFn, tables: Tables) -> Item:
    """Draw an item whose `context` says what its nodes and filters do.

    Half of the items are calm: most of their nodes succeed.
    """
    nodes = read(tables)
    calm = draw(st.booleans())
    request = Request()
    splits = [node for node in nodes.values() if node.split is not None]
    for name in dict.fromkeys(node.act for node in nodes.values() if node.jump is None):
        options = (
            ["answer", "answer", "list", "both", "data"] if calm else ["answer", "answer", *ACTS]
        )
        if any(name in node.before for node in splits):
            options = ["list"] * 2 + options[calm:]
        request.acts[name] = draw(st.lists(st.sampled_from(options), min_size=1, max_size=2))
    for name in sorted({node.filter for node in nodes.values()} & FILTERS.keys()):
        statuses = st.sampled_from(
            VERDICTS[:1] * 4 + VERDICTS[:4] if calm else VERDICTS[:4] + VERDICTS
        )
        changes = st.sampled_from(CHANGES[:2] if calm else CHANGES)
        request.verdicts[name] = draw(
            st.lists(st.tuples(changes, statuses), min_size=1, max_size=2)
        )
    item: Item = {"context": request}
    jumps = {node.jump for node in nodes.values()}
    roots = [node.name for node in nodes.values() if not node.before]
    defaults = [name for name in roots if name not in jumps]
    match draw(st.sampled_from(["default", "default", "default", "any", "any", "root", "stale"])):
        case "any":
            item["node_name"] = draw(st.sampled_from([*nodes, *nodes, "unknown"]))
        case "stale":
            item |= {"result": "stale", "error": "stale"}
        case "default" if len(defaults) == 1:
            pass
        case _:
            item["node_name"] = draw(st.sampled_from(roots))
    entered = nodes.get(item.get("node_name", defaults[0] if len(defaults) == 1 else ""))
    lists = st.sampled_from([["p", "q"], ["p", "q", "r", "s", "t"], []])
    item["data"] = draw(
        lists if entered is not None and entered.split else lists | st.sampled_from(["d", "e"])
    )
    if draw(st.booleans()):
        item["x"] = draw(lists | st.just("x"))
    if draw(st.booleans()):
        item["filter"] = draw(st.sampled_from(SAID))
    return item


@st.composite
def all_running(draw: st.DrawFn, roots: int, least: int = 1) -> tuple[Tables, Item, list[str]]:
    """Draw a graph, an item for which all nodes run, and the names of the nodes with a filter.

    No two of these nodes have the same filter.
    """
    tables = draw(configurations(roots, least))
    nodes = read(tables)
    filtered = [name for name, node in nodes.items() if node.before][: len(FILTERS)]
    for name, own in zip(filtered, FILTERS, strict=False):
        tables[name]["filter"] = own
    for table in tables.values():
        if "map" in table:
            table["map"] = re.sub(r"\b[xk]:", "data:", table["map"])  # a key that every node leaves
    jumps = {node.jump for node in nodes.values()}
    entry = draw(
        st.sampled_from(
            [name for name, node in nodes.items() if not node.before and name not in jumps]
        )
    )
    request = Request(acts={name: ["list"] for name in nodes})
    return (
        tables,
        {"data": ["p", "q", "r"], "x": ["s"], "context": request, "node_name": entry},
        filtered,
    )


@st.composite
def skips(draw: st.DrawFn) -> tuple[Tables, Item]:
    """Draw a graph in which all nodes run, except those that one filter skips.

    The filter skips them for all of its data, or for some.
    """
    tables, item, filtered = draw(all_running(roots=2))
    reference = Reference(tables, lambda node, given: None, {})
    status = draw(st.sampled_from(["SerialSkip", "SubGraphSkip", "Skip"]))

    def is_read_from(name: str) -> bool:
        skipped = reference.skipped(name, status)
        return any(
            source in skipped - {name} and other.name not in skipped
            for other in reference.nodes.values()
            for source, _, _ in other.map
        )

    # Nodes that only parts reach, for example those of a MapReduce.
    in_parts = [name for name in filtered if name not in reference.led_to(item["node_name"])]
    candidates = (
        draw(st.sampled_from([[name for name in filtered if is_read_from(name)], in_parts]))
        or filtered
    )
    if candidates:
        own = tables[draw(st.sampled_from(candidates))]["filter"]
        item["context"].verdicts[own] = [
            ("mark", status),
            *draw(st.sampled_from([[], [("", "Run")]])),
        ]
    return tables, item


@st.composite
def ends(draw: st.DrawFn) -> tuple[Tables, Item]:
    """Draw a graph in which one node ends the request while others run beside it."""
    tables, item, filtered = draw(all_running(roots=1, least=5))
    reference = Reference(tables, lambda node, given: None, {})

    def has_others_beside(name: str) -> bool:
        return any(
            other not in reference.led_to(name) and name not in reference.led_to(other)
            for other in reference.nodes
        )

    beside = [name for name in filtered if has_others_beside(name)]
    assume(beside)
    last = draw(st.sampled_from(beside))
    how = draw(st.sampled_from(["Break", "Error", "raise", "act"]))
    if how == "act":
        item["context"].acts[reference.nodes[last].act] = ["raise"]
    else:
        item["context"].verdicts[tables[last]["filter"]] = [("", how)]
    return tables, item
