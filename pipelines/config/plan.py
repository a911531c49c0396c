"""The plan of a graph: for each node what comes before it, after it and in front of it. Made once, read by every request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from penstock.backends.errors import InvalidRequest, NotFound, Problem
from penstock.backends.expressions.composite import Logic
from penstock.backends.expressions.filters import Filter, find_filter, run, swap
from penstock.backends.item import Item
from penstock.backends.suggestions import did_you_mean

from ..node.queue import Entry
from ..node.statistics import NodeStatistics
from .definition import NodeConfig

if TYPE_CHECKING:
    from ..node.node import Node


class Runs(Protocol):
    """What runs a place's items: a `Node` with executors, or a `Composite` that waits for other nodes.

    `enqueue` never ends an entry before it returns.
    """

    executes: ClassVar[bool]
    """It is a `Node`."""

    name: str
    config: NodeConfig
    statistics: NodeStatistics

    def enqueue(self, entry: Entry, now: float) -> None: ...
    def discard(self, entry: Entry) -> None: ...


class Place:
    """One node of the graph. Logical nodes (`rec.2`) are places of their own that share another one's `node`.

    `sources`: for each place that `map` names, the keys to take and what to call them; None: what comes is taken as it is.
    `kept`: some `map` reads what left this place. `streams`: it yields several results for one item. `index`: of the topological order.
    """

    __slots__ = (
        "_owned", "_serial", "before", "config", "filter", "filter_name", "follows", "index", "kept", "name", "next", "node", "sources",
        "streams",
    )  # fmt: skip

    def __init__(self, config: NodeConfig, owner: NodeConfig, index: int) -> None:
        """`owner` has the instances; it is `config` itself, but for nodes that share."""
        self.config = config
        self.index = index
        self.streams = any(
            issubclass(group.spec.cls, Logic) and group.spec.cls.streams for group in owner.groups
        )
        self.name = config.name
        self.node: Runs  # set when the pipeline starts
        self.next: tuple[Place, ...] = ()
        self.before: tuple[Place, ...] = ()
        self.follows: Place | None = None  # the only one of `next`
        self.sources: tuple[tuple[Place, tuple[tuple[str, str], ...]], ...] | None = None
        self.filter: Filter = swap
        self.filter_name = "swap"
        self.kept = False
        self._serial: tuple[Place, ...] | None = None
        self._owned: tuple[Place, ...] | None = None

    def __repr__(self) -> str:
        return f"<Place {self.name}>"

    # Made when first asked for: few places are ever skipped with others, and all of them for all places are the square of a long chain.

    @property
    def serial(self) -> tuple[Place, ...]:
        """The longest chain that starts here: what SerialSkip skips."""
        if self._serial is None:
            chain = [self]
            while (following := chain[-1].follows) is not None and len(following.before) == 1:
                chain.append(following)
            self._serial = tuple(chain)
        return self._serial

    @property
    def owned(self) -> tuple[Place, ...]:
        """All that only this place leads to, and the place itself, in topological order: what SubGraphSkip skips."""
        if self._owned is None:
            found, led_to = [self], Counter[Place]()
            for place in found:  # it grows
                for following in place.next:
                    led_to[following] += 1
                    if led_to[following] == len(following.before):
                        found.append(following)
            self._owned = tuple(sorted(found, key=lambda place: place.index))
        return self._owned


class Entrance:
    """A place at which items may come in, and the `places` that they pass from there, in topological order.

    `linear`: a chain of nodes with nothing but `swap` between them. `waiting`: how many items each place waits for.
    """

    __slots__ = ("_nodes", "leaves", "linear", "places", "root", "stream", "waiting")

    def __init__(self, root: Place, places: tuple[Place, ...]) -> None:
        self.root = root
        self.places = places
        self._nodes: tuple[Node, ...] | None = None
        self.leaves = sum(not place.next for place in places)
        self.waiting = {place: len(place.before) for place in places}
        self.stream = next((place for place in places if place.streams), None)
        self.linear = self.stream is None and all(
            len(place.next) <= 1
            and (place is root or (place.filter is swap and place.sources is None))
            for place in places
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Those of its places' nodes that have executors; once the pipeline runs."""
        if self._nodes is None:
            found: Any = dict.fromkeys(place.node for place in self.places if place.node.executes)
            self._nodes = tuple(found)
        return self._nodes

    def check_priority(self, priority: int, pipeline: str) -> None:
        """Raise `InvalidRequest` for a priority that items can't have here; `pipeline` is for its message."""
        node = self.root.node
        levels = node.config.priority_levels
        if not levels:
            raise InvalidRequest(
                f"pipeline {pipeline!r} has no priorities (node {node.name!r} sets no priority_levels); got priority {priority}"
            )
        if not 1 <= priority <= levels:
            raise InvalidRequest(
                f"pipeline {pipeline!r} has {levels} priority levels, 1 is the highest; got priority {priority}"
            )

    def size_of(self, item: Item, pipeline: str) -> int:
        """The item's `request_size`. Raises `InvalidRequest` for one that no batch here can hold."""
        size = item["request_size"]
        if not isinstance(size, int) or size < 1:
            raise InvalidRequest(
                f"pipeline {pipeline!r}: 'request_size' is a positive int, the rows of this item; got {size!r}"
            )
        bound = min((node.scheduler.max for node in self.nodes), default=size)
        if size > bound:
            raise InvalidRequest(
                f"inference request batch-size must be <= {bound} for {pipeline!r}; got {size}"
            )
        return size

    def problems(self) -> list[Problem]:
        """What a stream in this graph is in the way of: for each value it yields, all that comes after it runs again."""
        streams = [place for place in self.places if place.streams]
        if len(streams) > 1:
            return [
                Problem(
                    f"node {streams[0].name!r} yields several results too: only one node on the way may",
                    node=streams[1].name,
                )
            ]
        before, after = set(streams), set(streams)
        for place in reversed(self.places):
            if not before.isdisjoint(place.next):
                before.add(place)
        for place in self.places:
            if not after.isdisjoint(place.before):
                after.add(place)
        beside = [place.name for place in self.places if place not in before and place not in after]
        if not streams or not beside:
            return []
        return [
            Problem(
                f"it yields several results, so no other branch may run beside it; {beside[0]!r} does",
                node=streams[0].name,
            )
        ]


class Entrances(Mapping[str, Entrance]):
    """By the names of the nodes that may be entered; each is made when first asked for.

    A node may be entered if all predecessors of everything it leads to, and the sources of its `map`s, are among what it leads to.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self._found: dict[str, Entrance | None] = {}

    def __getitem__(self, name: str) -> Entrance:
        if name not in self._found:
            self._found[name] = self._entrance(self._places[name])
        found = self._found[name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._places if self.get(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @staticmethod
    def _entrance(root: Place) -> Entrance | None:
        reached = {root}
        waiting = [root]
        while waiting:
            for following in waiting.pop().next:
                if following not in reached:
                    reached.add(following)
                    waiting.append(following)
        for place in reached - {root}:
            if not reached.issuperset(place.before) or not reached.issuperset(
                source for source, _ in place.sources or ()
            ):
                return None
        return Entrance(root, tuple(sorted(reached, key=lambda place: place.index)))


class Plan:
    """All places by name, in topological order, and the entrances among them.

    `default`: where items come in that name no node; None where that would be a choice.
    """

    __slots__ = ("default", "entrances", "places", "roots")

    def __init__(self, nodes: Mapping[str, NodeConfig], entry: str | None = None) -> None:
        self.places = {
            name: Place(config, nodes[config.shares or name], index)
            for index, (name, config) in enumerate(nodes.items())
        }
        before: dict[str, list[Place]] = {name: [] for name in nodes}
        for place in self.places.values():
            place.next = tuple(self.places[name] for name in place.config.next)
            place.follows = place.next[0] if len(place.next) == 1 else None
            for following in place.next:
                before[following.name].append(place)
        for place in self.places.values():
            place.before = tuple(before[place.name])
            if place.config.map:
                place.sources = tuple(
                    (self.places[source], pairs) for source, pairs in place.config.map
                )
                for source, _ in place.sources:
                    source.kept = True
                place.filter, place.filter_name = run, "Run"
            if place.config.filter is not None:
                place.filter, place.filter_name = (
                    find_filter(place.config.filter),
                    place.config.filter,
                )
        self.entrances = Entrances(self.places)
        self.roots = tuple(place for place in self.places.values() if not place.before)
        self.default = self._default(entry)

    def entrance(self, name: Any, pipeline: str) -> Entrance:
        """Where an item with this `node_name` comes in. Raises `NotFound`; `pipeline` is for its message."""
        found = self.entrances.get(name) if isinstance(name, str) else None
        if found is not None:
            return found
        if isinstance(name, str) and name in self.places:
            raise NotFound(
                f"pipeline {pipeline!r}: node {name!r} can't be entered (node_name): what it leads to needs what other nodes give, to "
                "which it does not lead"
            )
        hint = did_you_mean(name, self.places) if isinstance(name, str) else ""
        raise NotFound(
            f"pipeline {pipeline!r} has no node {name!r} (node_name){hint}; its nodes are {', '.join(self.places)}"
        )

    def problems(self) -> list[Problem]:
        """What no request could pass."""
        return [problem for root in self.roots for problem in self.entrances[root.name].problems()]

    def no_default(self, pipeline: str) -> NotFound:
        """The error for an item that names no node where it must."""
        roots = ", ".join(place.name for place in self.roots)
        return NotFound(
            f"pipeline {pipeline!r} has several roots ({roots}): the item must name one, as node_name"
        )

    def _default(self, entry: str | None) -> Entrance | None:
        if entry is not None:
            return self.entrances[entry]
        targets = {
            getattr(group.spec.params, "jump", None)
            for place in self.places.values()
            for group in place.config.groups
        }
        roots = [place for place in self.roots if place.name not in targets]
        return self.entrances[roots[0].name] if len(roots) == 1 else None
