"""The plan of a graph: for each node, what comes before it, what follows it, and its filter.

A plan is made once from a checked configuration and read by every request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from penstock.backends.base import UNBOUNDED, Signature
from penstock.backends.errors import InvalidRequest, NotFound
from penstock.backends.expressions.composite import Ensemble
from penstock.backends.expressions.filters import Filter, find_filter, run, swap
from penstock.backends.item import Item
from penstock.backends.suggestions import did_you_mean

from ..config.definition import NodeConfig
from ..node.node import Node
from ..node.outflow import Outflow
from ..node.queue import Batch, Entry
from ..node.rows import rows_to_admit
from ..node.statistics import NodeStatistics


class RunningNode(Protocol):
    """A node that runs the items of a plan node.

    It is a `Node`, which has executors, or a `CompositeNode`, which waits for other nodes.
    `enqueue` never ends an entry before it returns.
    """

    name: str
    config: NodeConfig
    statistics: NodeStatistics
    counted: Signature | None
    """The signature of its engine, if rows are counted from the arrays."""

    def enqueue(self, entry: Entry, now: float) -> None: ...
    def discard(self, entry: Entry) -> None: ...
    def batch_of(self, entry: Entry) -> Batch | None: ...


class PlanNode:
    """One node of the graph.

    A logical node (`rec.2`) is a plan node of its own that shares the `node` of another one.

    `index` is the position in the topological order. `sources` has, for each plan node that `map`
    names, the keys to take and what to call them; None: the item is taken as it comes. `kept`:
    some `map` reads what left this plan node. `streams`: it yields several results for one item.
    """

    __slots__ = (
        "_owned",
        "_serial",
        "before",
        "config",
        "filter",
        "filter_name",
        "follows",
        "index",
        "kept",
        "name",
        "next",
        "node",
        "outflow",
        "sources",
        "streams",
    )

    def __init__(self, config: NodeConfig, owner: NodeConfig, index: int) -> None:
        """`owner` has the instances. It is `config` itself, except for nodes that share."""
        self.config = config
        self.index = index
        self.streams = owner.streams
        self.name = config.name
        self.node: RunningNode  # set when the pipeline starts
        # Where the bytes of its results are counted; None: nowhere (running_graph.py).
        self.outflow: Outflow | None = None
        self.next: tuple[PlanNode, ...] = ()
        self.before: tuple[PlanNode, ...] = ()
        self.follows: PlanNode | None = None  # the only one of `next`
        self.sources: tuple[tuple[PlanNode, tuple[tuple[str, str], ...]], ...] | None = None
        self.filter: Filter = swap
        self.filter_name = "swap"
        self.kept = False
        self._serial: tuple[PlanNode, ...] | None = None
        self._owned: tuple[PlanNode, ...] | None = None

    def __repr__(self) -> str:
        return f"<PlanNode {self.name}>"

    # `serial` and `owned` are made on first use. Few nodes are ever skipped together with others,
    # and the tuples of all nodes grow with the square of a long chain.

    @property
    def serial(self) -> tuple[PlanNode, ...]:
        """The longest chain that starts here: what SerialSkip skips."""
        if self._serial is None:
            chain: list[PlanNode] = [self]
            while (following := chain[-1].follows) is not None and len(following.before) == 1:
                chain.append(following)
            self._serial = tuple(chain)
        return self._serial

    @property
    def owned(self) -> tuple[PlanNode, ...]:
        """This node and all that only it leads to, in topological order: SubGraphSkip skips it."""
        if self._owned is None:
            owned: list[PlanNode] = [self]
            led_to = Counter[PlanNode]()
            for plan_node in owned:  # it grows
                for following in plan_node.next:
                    led_to[following] += 1
                    if led_to[following] == len(following.before):
                        owned.append(following)
            self._owned = tuple(sorted(owned, key=lambda plan_node: plan_node.index))
        return self._owned


class EntryPoint:
    """A plan node at which items may come in, and the `plan_nodes` that they pass from there.

    `plan_nodes` is in topological order and starts with `root`. `linear`: they are a chain with
    nothing but `swap` between them. `waiting`: for each plan node, the number of predecessors it
    waits for. `leaves`: the number of plan nodes without a successor. `stream`: the plan node that
    yields several results, if there is one.
    """

    __slots__ = ("_nodes", "leaves", "linear", "plan_nodes", "root", "stream", "waiting")

    def __init__(self, root: PlanNode, plan_nodes: tuple[PlanNode, ...]) -> None:
        self.root = root
        self.plan_nodes = plan_nodes
        self._nodes: tuple[Node, ...] | None = None
        self.leaves = sum(not plan_node.next for plan_node in plan_nodes)
        self.waiting = {plan_node: len(plan_node.before) for plan_node in plan_nodes}
        self.stream = next((plan_node for plan_node in plan_nodes if plan_node.streams), None)
        self.linear = self.stream is None and all(
            len(plan_node.next) <= 1
            and (plan_node is root or (plan_node.filter is swap and plan_node.sources is None))
            for plan_node in plan_nodes
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes with executors that run its plan nodes; available when the pipeline runs."""
        if self._nodes is None:
            running = dict.fromkeys(plan_node.node for plan_node in self.plan_nodes)
            self._nodes = tuple(node for node in running if isinstance(node, Node))
        return self._nodes

    @property
    def max_rows(self) -> int:
        """The most rows of an item that all its nodes take. 0: it has no node that bounds them.

        Available when the pipeline runs.
        """
        bounds = [node.scheduler.max for node in self.nodes]
        bounds += [
            group.bound(UNBOUNDED)
            for plan_node in self.plan_nodes
            for group in plan_node.config.instance_groups
            if issubclass(group.spec.cls, Ensemble)
        ]
        return min(bounds, default=0)

    def check_priority(self, priority: int, pipeline: str) -> None:
        """Raise `InvalidRequest` for a priority that items can't have here.

        If the node sets no `priority_levels`, any from 1 on is ignored (rule 4). `pipeline` is the
        name for the message.
        """
        levels = self.root.node.config.priority_levels
        if priority < 1 or 0 < levels < priority:
            has = f"{levels} priority levels" if levels else "no priority levels"
            raise InvalidRequest(
                f"pipeline {pipeline!r} has {has}, 1 is the highest; found priority {priority}"
            )

    def size_of(self, item: Item, pipeline: str) -> int:
        """Return the item's `request_size`.

        Raises `InvalidRequest` for a size that no batch can hold.
        """
        size = item["request_size"]
        if not isinstance(size, int) or size < 1:
            raise InvalidRequest(
                f"pipeline {pipeline!r}: 'request_size' is the number of rows of the item: "
                f"expected a positive int, found {size!r}"
            )
        bound = self.max_rows
        if size > bound > 0:
            raise InvalidRequest(
                f"inference request batch-size must be <= {bound} for {pipeline!r}; got {size}"
            )
        return size

    def rows_of(self, item: Item) -> int:
        """Return the rows of an item without `request_size`, if the root counts them."""
        root = self.root.node
        if root.counted is None or not isinstance(root, Node):
            return 1
        return rows_to_admit(item, root.counted, root.scheduler.max)


class EntryPoints(Mapping[str, EntryPoint]):
    """The entry points of a plan by the names of their nodes. Each is made on first use.

    A node may be entered if everything it leads to has all its predecessors, and the sources of
    its `map`, among what the node leads to.
    """

    def __init__(self, plan_nodes: Mapping[str, PlanNode]) -> None:
        self._plan_nodes = plan_nodes
        self._made: dict[str, EntryPoint | None] = {}  # None: the node can't be entered

    def __getitem__(self, name: str) -> EntryPoint:
        if name not in self._made:
            self._made[name] = self._entry_point(self._plan_nodes[name])
        entry_point = self._made[name]
        if entry_point is None:
            raise KeyError(name)
        return entry_point

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._plan_nodes if self.get(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @staticmethod
    def _entry_point(root: PlanNode) -> EntryPoint | None:
        reached = {root}
        stack = [root]
        while stack:
            for following in stack.pop().next:
                if following not in reached:
                    reached.add(following)
                    stack.append(following)
        for plan_node in reached - {root}:
            if not reached.issuperset(plan_node.before) or not reached.issuperset(
                source for source, _ in plan_node.sources or ()
            ):
                return None
        return EntryPoint(root, tuple(sorted(reached, key=lambda plan_node: plan_node.index)))


class Plan:
    """All plan nodes by name, in topological order, and the entry points among them.

    `default` is the entry point of items that name no node; None if several roots could be meant.
    """

    __slots__ = ("default", "entry_points", "nodes", "roots")

    def __init__(self, configs: Mapping[str, NodeConfig], entry: str | None = None) -> None:
        self.nodes = {
            name: PlanNode(config, configs[config.shares or name], index)
            for index, (name, config) in enumerate(configs.items())
        }
        before: dict[str, list[PlanNode]] = {name: [] for name in configs}
        for plan_node in self.nodes.values():
            plan_node.next = tuple(self.nodes[name] for name in plan_node.config.next)
            plan_node.follows = plan_node.next[0] if len(plan_node.next) == 1 else None
            for following in plan_node.next:
                before[following.name].append(plan_node)
        for plan_node in self.nodes.values():
            plan_node.before = tuple(before[plan_node.name])
            config = plan_node.config
            if config.map:
                plan_node.sources = tuple(
                    (self.nodes[source], pairs) for source, pairs in config.map
                )
                for source, _ in plan_node.sources:
                    source.kept = True
                plan_node.filter, plan_node.filter_name = run, "Run"
            if config.filter is not None:
                plan_node.filter, plan_node.filter_name = find_filter(config.filter), config.filter
        self.entry_points = EntryPoints(self.nodes)
        self.roots = tuple(plan_node for plan_node in self.nodes.values() if not plan_node.before)
        self.default = self._default(entry)

    def entry_point(self, name: Any, pipeline: str) -> EntryPoint:
        """Return the entry point of an item with this `node_name`.

        Raises `NotFound`; `pipeline` is the name for its message.
        """
        entry_point = self.entry_points.get(name) if isinstance(name, str) else None
        if entry_point is not None:
            return entry_point
        if isinstance(name, str) and name in self.nodes:
            raise NotFound(
                f"pipeline {pipeline!r}: node {name!r} can't be entered (node_name): a node after "
                "it needs the results of nodes that it does not lead to"
            )
        hint = did_you_mean(name, self.nodes) if isinstance(name, str) else ""
        raise NotFound(
            f"pipeline {pipeline!r} has no node {name!r} (node_name){hint}; its nodes are "
            f"{', '.join(self.nodes)}"
        )

    def no_default(self, pipeline: str) -> NotFound:
        """Make the error for an item that names no node although there are several roots."""
        roots = ", ".join(plan_node.name for plan_node in self.roots)
        return NotFound(
            f"pipeline {pipeline!r} has several roots ({roots}): "
            "the item must name one, as node_name"
        )

    def _default(self, entry: str | None) -> EntryPoint | None:
        if entry is not None:
            return self.entry_points[entry]
        targets = {
            getattr(group.spec.params, "jump", None)
            for plan_node in self.nodes.values()
            for group in plan_node.config.instance_groups
        }
        roots = [plan_node for plan_node in self.roots if plan_node.name not in targets]
        return self.entry_points[roots[0].name] if len(roots) == 1 else None
