"""The meaning of a graph, as plain recursion: one item passes one node after another.

There is no loop, no queue and no batch, and the nodes are plain functions. It shares nothing with
penstock.pipelines but the format of a configuration. Where parallel branches race (for example a
Break and a failure), `Reference.outcomes` gives every outcome that is allowed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from penstock.backends.errors import InvalidInput

Item = dict[str, Any]
Choose = Callable[[list[Any]], Any]
T = TypeVar("T")

ALIASES = {
    "Continue": "Run",
    "continue": "Run",
    "run": "Run",
    "skip": "Skip",
    "serial_skip": "SerialSkip",
    "subgraph_skip": "SubGraphSkip",
    "break": "Break",
    "error": "Error",
}


class FailedError(Exception):
    """Raised when the request ends at a node.

    `nodes` has the logical node and the one whose instances ran it. `invalid` is the soft failure
    that an earlier node left, if that is the reason.
    """

    def __init__(self, nodes: set[str], why: str, invalid: InvalidInput | None = None) -> None:
        super().__init__(nodes, why)
        self.nodes = nodes
        self.why = why
        self.invalid = invalid


class BreakError(Exception):
    """Raised by Break: the item is the answer."""

    def __init__(self, item: Item) -> None:
        self.item = item


class Outcome(NamedTuple):
    """One way in which a request may end.

    It has an `answer` (with an `error` after a soft failure), or it has `failed` at a node. Each
    node runs at least `least` and at most `most` times; they are equal where nothing races.
    """

    answer: Item | None
    failed: FailedError | None
    least: Counter[str]
    most: Counter[str]


class Node(NamedTuple):
    name: str
    next: list[str]
    before: list[str]
    filter: str
    map: list[tuple[str, str, str]]
    """Triples of a source, its key, and the key here."""
    act: str
    """The node whose instances run it: itself, except for logical nodes and `borrow_from`."""
    jump: str | None
    split: str | None
    merge: list[str]


def read(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Node]:
    """Read the nodes, in topological order."""
    following = {
        name: [piece.strip() for piece in table["next"].split(",")] if "next" in table else []
        for name, table in tables.items()
    }
    nodes: dict[str, Node] = {}

    def visit(name: str) -> None:
        if name in nodes:
            return
        before = [other for other in tables if name in following[other]]
        for other in before:
            visit(other)
        table = tables[name]
        pairs = []
        for source, inside in re.findall(r"([^,\[\]]*)\[([^\]]*)\]", table.get("map", "")):
            for pair in inside.split(","):
                key, _, here = pair.partition(":")
                pairs.append((source.strip() or min(before), key.strip(), here.strip()))
        act = name.partition(".")[0] if "." in name else table.get("borrow_from", name)
        composite = tables[act] if tables[act].get("backend") in ("Jump", "MapReduce") else {}
        split = composite.get("split", "data") if composite.get("backend") == "MapReduce" else None
        nodes[name] = Node(
            name=name,
            next=following[name],
            before=before,
            filter=table.get("filter") or ("Run" if pairs else "swap"),
            map=pairs,
            act=act,
            jump=composite.get("jump"),
            split=split,
            merge=composite.get("merge", "result").split(","),
        )

    for name in tables:
        visit(name)
    return nodes


class Reference:
    """A graph that is evaluated by recursion.

    `act(node, item)` is what the backends do. `filters` are the registered filters; they return the
    name of a status for an item.
    """

    def __init__(
        self,
        tables: Mapping[str, Mapping[str, Any]],
        act: Callable[[str, Item], None],
        filters: Mapping[str, Callable[[Item], Any]],
    ) -> None:
        self.nodes = read(tables)
        self.act = act
        self.filters = filters

    def outcomes(self, item: Item) -> Iterator[Outcome]:
        """Yield every way in which the request may end. Raises IndexError if it can't enter."""
        entry = self.entry(item)
        stale = {key: value for key, value in item.items() if key not in ("result", "error")}
        return in_all_ways(lambda choose: self.run(entry, stale, choose))

    # where an item enters

    def entry(self, item: Item) -> str:
        if "node_name" in item:
            name = item["node_name"]
            if name not in self.nodes or not self.may_be_entered(name):
                raise IndexError(name)
            return str(name)
        jumps = {node.jump for node in self.nodes.values()}
        roots = [
            node.name for node in self.nodes.values() if not node.before and node.name not in jumps
        ]
        if len(roots) != 1:
            raise IndexError(f"roots: {roots}")
        return roots[0]

    def led_to(self, name: str) -> set[str]:
        """Return the node and all nodes that it leads to."""
        return {name}.union(*[self.led_to(other) for other in self.nodes[name].next])

    def may_be_entered(self, name: str) -> bool:
        inside = self.led_to(name)
        needed = [self.nodes[other] for other in inside - {name}]
        return all(
            {*node.before, *(source for source, _, _ in node.map)} <= inside for node in needed
        )

    # what a status skips

    def skipped(self, name: str, status: str) -> set[str]:
        if status == "Skip":
            return {name}
        if status == "SerialSkip":
            following = self.nodes[name].next
            if len(following) == 1 and self.nodes[following[0]].before == [name]:
                return {name} | self.skipped(following[0], status)
            return {name}
        every_way = {other for other in self.nodes if self.only_by(name, other)}
        return {name} | every_way

    def only_by(self, gate: str, name: str) -> bool:
        """Return whether every way from a root to the node passes the gate."""
        before = self.nodes[name].before
        return name == gate or (bool(before) and all(self.only_by(gate, other) for other in before))

    # one pass through what `entry` leads to

    def run(self, entry: str, item: Item, choose: Choose) -> Outcome:
        inside = self.led_to(entry)
        left: dict[str, Item] = {}  # what left each node, whether it ran or was skipped
        # What may end the request, by the node where it happens. None of them leads to another.
        ends: dict[str, FailedError | BreakError] = {}
        runs: dict[str, tuple[Counter[str], Counter[str]]] = {}
        for node in self.nodes.values():
            name = node.name
            if (
                name not in inside
                or name in left
                or (name != entry and any(other not in left for other in node.before))
            ):
                continue
            runs[name] = Counter(), Counter()
            try:
                own, status = (dict(item), "Run") if name == entry else self.arrive(node, left)
                if status == "Run":
                    left[name] = self.work(node, own, choose, *runs[name])
                else:
                    left.update(dict.fromkeys(self.skipped(name, status), own))
            except (FailedError, BreakError) as error:
                ends[name] = error
        most = sum((high for _, high in runs.values()), Counter[str]())
        if ends:
            first = choose(list(ends))
            least = sum(
                (runs[name][0] for name in runs if first in self.led_to(name)), Counter[str]()
            )
            end = ends[first]
            if isinstance(end, FailedError):
                if end.invalid is None:
                    return Outcome(None, end, least, most)
                answer = {**item, "error": end.invalid}
            else:
                answer = dict(end.item)
        else:
            least = sum((low for low, _ in runs.values()), Counter[str]())
            leaves = [name for name in inside if not self.nodes[name].next]
            answer = dict(left[leaves[0]] if len(leaves) == 1 else item)
        answer["data"] = item["data"]
        return Outcome(answer, None, least, most)

    def arrive(self, node: Node, left: Mapping[str, Item]) -> tuple[Item, str]:
        """Return the node's own copy of the item, and the status that its filter returns for it."""
        item = self.mapped(node, left) if node.map else dict(left[node.before[0]])
        if node.filter in self.filters:
            try:
                status = self.filters[node.filter](item)
            except Exception as error:
                raise FailedError({node.name}, f"the filter raised {error}") from error
        elif node.filter in ("or", "else"):
            status = "Skip" if "result" in item else "Run"
        elif node.filter in ("filter", "if"):
            status = str(item.get("filter"))
        elif node.filter in ("swap", "result2other"):
            status = "Run" if "result" in item else "Break"
            if status == "Run":
                item["data"] = item.pop("result")
                if node.filter == "result2other":
                    item["other"] = item["data"]
        else:
            status = node.filter
        status = ALIASES.get(status, status)
        if status == "Break":
            raise BreakError(item)
        if status == "Run":
            item.pop("result", None)
            item.pop("error", None)
        elif status not in ("Skip", "SerialSkip", "SubGraphSkip"):
            raise FailedError({node.name}, f"the filter said {status}")
        return item, status

    def mapped(self, node: Node, left: Mapping[str, Item]) -> Item:
        item: Item = {}
        for source, key, here in node.map:
            if "context" in left[source]:
                item["context"] = left[source]["context"]
            if key not in left[source]:
                raise FailedError({node.name}, f"no {key} in {source}", left[source].get("error"))
            item[here] = left[source][key]
        return item

    # one node

    def work(
        self, node: Node, item: Item, choose: Choose, least: Counter[str], most: Counter[str]
    ) -> Item:
        """Return the answer of the node, and count in `least` and `most` what ran in it."""
        if node.jump is None:
            least[node.act] += 1
            most[node.act] += 1
            try:
                own = dict(item)
                self.act(node.act, own)
            except InvalidInput as error:
                return {**item, "error": error}
            except Exception as error:
                raise FailedError({node.name, node.act}, str(error)) from error
            if "error" in own:
                own.pop("result", None)
            return own
        pieces = [item.get("data")] if node.split is None else item.get(node.split)
        if not isinstance(pieces, list):
            raise FailedError({node.name, node.act}, f"{node.split} is not a list")
        if pieces and "data" not in item:
            raise FailedError({node.name, node.act}, "no data")
        parts = [
            self.run(node.jump, {**item, node.split or "data": piece}, choose) for piece in pieces
        ]
        failures: list[tuple[FailedError, Counter[str]]] = []
        for part in parts:
            most += part.most
            if part.answer is None:
                assert part.failed is not None
                failures.append((part.failed, part.least))
            elif "error" in part.answer:
                failures.append(
                    (FailedError({node.name}, "soft", part.answer["error"]), part.least)
                )
            elif node.split is not None and not part.answer.keys() >= set(node.merge):
                failures.append(
                    (FailedError({node.name, node.act}, "a part lacks a key"), part.least)
                )
        if failures:
            failed, ran = choose(failures)
            least += ran
            if failed.invalid is not None:
                return {**item, "error": failed.invalid}
            raise failed
        for part in parts:
            least += part.least
        answers = [part.answer for part in parts if part.answer is not None]
        if node.split is None:
            return answers[0]
        return {**item, **{key: [answer[key] for answer in answers] for key in node.merge}}


def in_all_ways(evaluate: Callable[[Choose], T]) -> Iterator[T]:
    """Evaluate once for every combination of answers to the calls of `choose`."""
    scripts: list[list[int]] = [[]]
    while scripts:
        script = scripts.pop()
        made: list[int] = []

        def choose(options: list[Any], script: list[int] = script, made: list[int] = made) -> Any:
            if len(made) >= len(script):
                scripts.extend([*made, other] for other in range(1, len(options)))
            made.append(script[len(made)] if len(made) < len(script) else 0)
            return options[made[-1]]

        yield evaluate(choose)
