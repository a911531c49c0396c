"""The nodes and filters of generated graphs: plain functions that read in the item what to do.

The answer of a node describes the whole dict that it was given, so that a wrong key anywhere shows
in the result.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from zlib import crc32

from penstock.backends.base import Backend, Context, Params
from penstock.backends.errors import DeviceError, InvalidInput
from penstock.backends.expressions.filters import Status

from .reference import Item

ACTS = ("answer", "list", "nothing", "key", "both", "data", "drop", "raise", "soft", "half")
CHANGES = ("", "mark", "take", "move", "data")
VERDICTS = ("Run", "Skip", "SerialSkip", "SubGraphSkip", "Break", "Error", "raise", "nonsense")
BOUND = 20.0  # seconds after which a test that hangs fails


@dataclass
class Request:
    """The `context` of an item, which reaches every node.

    If a node or filter has several things to do, the item's data selects one.
    """

    acts: dict[str, Sequence[str]] = field(default_factory=dict)
    verdicts: dict[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list, compare=False, repr=False)
    """The nodes in the order in which they ran. Several threads append."""
    holds: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """Nodes that stop until `go` is set."""
    go: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


def chosen(options: Sequence[Any], item: Item) -> Any:
    return options[crc32(repr(item.get("data")).encode()) % len(options)]


def act_of(node: str, item: Item) -> str:
    return str(chosen(item["context"].acts.get(node, ("answer",)), item))


def act(node: str, item: Item) -> None:
    """Run the node on one item."""
    what = act_of(node, item)
    given = ",".join(f"{key}={value}" for key, value in sorted(item.items()) if key != "context")
    answer = f"{node}({given})" if len(given) < 60 else f"{node}#{crc32(given.encode()):08x}"
    match what:
        case "answer":
            item["result"] = answer
        case "list":
            item["result"] = [f"{answer}.{index}" for index in range(crc32(answer.encode()) % 6)]
        case "nothing":
            pass
        case "key":
            item["k"] = answer
        case "both":
            item["k"] = item["result"] = answer
        case "data":
            item["data"] = item["result"] = answer
        case "drop":
            item.pop("x", None)
            item.pop("data", None)
            item["result"] = answer
        case "raise":
            raise ValueError(answer)
        case "soft":
            item["k"] = "lost"
            raise InvalidInput(answer)
        case "half":
            item["result"] = "half"
            item["error"] = InvalidInput(answer)
        case _:
            raise AssertionError(what)


class Worker(Backend):
    """The backend of a node.

    A batch in which all items should fail raises an error that is not retried. If only some should,
    the node runs the items one by one and finds them.
    """

    parameters = Params
    max: ClassVar[int] = 64  # type: ignore[misc]

    def init(self, params: Any, context: Context) -> None:
        self.node = context.node

    def forward(self, batch: list[Item]) -> None:
        acts = [act_of(self.node, item) for item in batch]
        if len(batch) > 1 and "raise" in acts:
            if set(acts) == {"raise"}:
                self.count(batch)
                # Another error would suspend retries, and the neighbours of a later item that
                # fails would not run again.
                raise DeviceError("all of them")
            raise ValueError("one of them")
        if len(batch) > 1 and "soft" in acts:
            raise InvalidInput("one of them")
        self.count(batch)
        for item in batch:
            request: Request = item["context"]
            if self.node in request.holds:
                assert request.go.wait(BOUND)
            act(self.node, item)

    def count(self, batch: list[Item]) -> None:
        for item in batch:
            item["context"].ran.append(self.node)


def make_filter(name: str) -> Any:
    """Make a filter that does what the item's context lists under `name`."""

    def filter_(item: Item) -> Any:
        change, verdict = chosen(item["context"].verdicts.get(name, (("", "Run"),)), item)
        if change == "mark":
            item["f"] = name
        elif change == "take":
            item.pop("result", None)
        elif change == "move" and "result" in item:
            item["data"] = item.pop("result")
        elif change == "data":
            item["data"] = f"{name}:{item.get('data', '')}"[:40]
        if verdict == "raise":
            raise ValueError(name)
        return verdict if verdict == "nonsense" else Status(verdict)

    return filter_


FILTERS = {
    name: make_filter(name) for name in ("f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9")
}
