"""The graph of a running pipeline: its nodes and composites, and how requests enter it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Protocol

from penstock.backends.base import Context
from penstock.backends.errors import NotReady
from penstock.backends.expressions.composite import (
    BlockingLogic,
    CopySplit,
    Decoupled,
    Ensemble,
    Jump,
    Logic,
    MapReduce,
)

from .composites.blocking_logic import BlockingLogicNode
from .composites.composite import CompositeNode
from .composites.decoupled import DecoupledNode
from .composites.ensemble import EnsembleNode
from .composites.fan_out import CopySplitNode, FanOut, JumpNode, MapReduceNode
from .composites.logic import CalledPipeline, LogicNode
from .composites.model_calls import ModelCalls, Models
from .config.definition import NodeConfig, PipelineConfig
from .node.device_node import DeviceNode
from .node.loop_node import LoopNode, LoopTurn
from .node.node import Node
from .node.outflow import Outflow
from .node.queue import Entry
from .node.sequence_node import KeepsSequences, SequenceLoopNode, SequenceNode
from .overload.door import Pressure
from .runs.admission import Admission
from .runs.graph_run import GraphRun, NodeVisit
from .runs.plan import EntryPoint, Plan, RunningNode
from .runs.rounds import Rounds
from .runs.run import Run, Submission
from .runs.stream import StreamRun
from .runs.trace import Trace
from .sequences.sequencer import Host, Sequencer

FAN_OUTS: dict[type, type[FanOut]] = {
    Jump: JumpNode,
    MapReduce: MapReduceNode,
    CopySplit: CopySplitNode,
}

LOGIC: dict[type[Logic], type[LogicNode]] = {
    BlockingLogic: BlockingLogicNode,
    Ensemble: EnsembleNode,
}
"""Kinds of logic that run in another way than the `async def` of a user."""


def _import_numpy() -> None:
    import_module("numpy")


class Caller(CalledPipeline, Models, Protocol):
    """The pipeline, as those of its nodes need it that call."""


class RunningGraph:
    """The nodes of a pipeline, joined as its plan says.

    `nodes` have executors. `composites` wait for other nodes, on the loop.
    """

    def __init__(
        self,
        config: PipelineConfig,
        plan: Plan,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Callable[[], float],
        on_batch: Callable[[float], None],
        pressure: Pressure,
        caller: Caller,
        sequencer: Sequencer | None = None,
    ) -> None:
        self._name = config.name
        self._loop = loop
        self._clock = clock
        self._entry_points = plan.entry_points
        self._max_rounds = config.max_rounds
        self._pressure = pressure
        self._closed = False
        self._takes_tensors = any(
            port.kind == "tensor" for port in (*config.inputs, *config.outputs)
        )
        self.model_calls = ModelCalls(caller, loop, clock)
        running: dict[str, RunningNode] = {}
        self.composites: list[CompositeNode] = []
        nodes: list[Node] = []
        turn = LoopTurn(loop, clock)
        for name, node in config.nodes.items():
            if node.shares is not None:
                continue
            cls = node.instance_groups[0].spec.cls
            if issubclass(cls, Decoupled):
                running[name] = decoupled = DecoupledNode(
                    node, config, loop, clock, pipeline=caller, model_calls=self.model_calls
                )
                self.composites.append(decoupled)
            elif issubclass(cls, Logic):
                context = Context(pipeline=config.name, node=name, directory=config.directory)
                node_cls = next(
                    (node_cls for kind, node_cls in LOGIC.items() if issubclass(cls, kind)),
                    LogicNode,
                )
                running[name] = logic = node_cls(node, loop, clock, caller, context)
                self.composites.append(logic)
            elif cls in FAN_OUTS:
                running[name] = fan_out = self._fan_out(cls, node, plan)
                self.composites.append(fan_out)
            else:
                on_loop = node.executor in ("loop", "auto")
                executing: Node
                if sequencer is not None and node.sequence is not None:
                    executing = (
                        SequenceLoopNode(
                            node, config, loop, clock, on_batch, pressure=pressure, turn=turn
                        )
                        if on_loop
                        else SequenceNode(node, config, loop, clock, on_batch, pressure=pressure)
                    )
                    executing.sequencer = sequencer
                elif on_loop:
                    executing = LoopNode(
                        node, config, loop, clock, on_batch, pressure=pressure, turn=turn
                    )
                else:
                    several = len(set(node.devices)) > 1
                    executing = (DeviceNode if several else Node)(
                        node, config, loop, clock, on_batch, pressure=pressure
                    )
                if any(group.spec.takes_server for group in node.instance_groups):
                    executing.make_link = partial(self.model_calls.link, executing)
                running[name] = executing
                nodes.append(executing)
        self.nodes = tuple(nodes)
        self.hosts: list[Host] = [
            node
            for node in (*nodes, *self.composites)
            if isinstance(node, (KeepsSequences, LogicNode)) and node.config.sequence is not None
        ]
        for plan_node in plan.nodes.values():
            plan_node.node = running[plan_node.config.shares or plan_node.name]
        if config.stream_input is not None and plan.default is not None:
            root = plan.default.root.node
            assert isinstance(root, LogicNode)
            root.takes_stream = True
        # For each entry point that composites enter: the outflows of the nodes that it leads to, or
        # None if there is Python logic among them, which may call any node.
        self._reached: dict[EntryPoint, frozenset[Outflow] | None] = {}
        self._set_outflows(plan)

    def _set_outflows(self, plan: Plan) -> None:
        """Choose, for each plan node, the outflow that counts its results (rule 9).

        It is that of its node. A composite has no executor to hold back, so its results count where
        those of the node before it do.

        A node that a way leads back to, because logical nodes share it, has none: its results might
        wait for the node itself.
        """
        following: dict[RunningNode, set[RunningNode]] = {}
        for plan_node in plan.nodes.values():
            after = following.setdefault(plan_node.node, set())
            after.update(other.node for other in plan_node.next)
            if isinstance(plan_node.node, FanOut):
                entry_point = plan_node.node.entry_point
                after.add(entry_point.root.node)
                if self._outflows_from(entry_point) is None:
                    after.update(other.node for other in plan.nodes.values())
        around = _on_rings(following)
        for plan_node in plan.nodes.values():  # in topological order
            if isinstance(plan_node.node, Node):
                plan_node.outflow = None if plan_node.node in around else plan_node.node.outflow
            else:
                plan_node.outflow = next(
                    (other.outflow for other in plan_node.before if other.outflow is not None), None
                )

    @property
    def calls(self) -> bool:
        """True if it has Python logic or models that may call other pipelines."""
        return any(isinstance(composite, LogicNode) for composite in self.composites) or any(
            node.make_link is not None for node in self.nodes
        )

    def release_if_needed(self, entry: Entry, entry_point: EntryPoint | None) -> None:
        """Stop counting an item whose logic calls a graph, if that may wait for the count.

        `entry_point`: where the call enters this graph; None if it may lead anywhere.
        """
        if entry.charge is None:
            return
        reached = None if entry_point is None else self._outflows_from(entry_point)
        if reached is None or entry.charge[0] in reached:
            entry.release()

    def _outflows_from(self, entry_point: EntryPoint) -> frozenset[Outflow] | None:
        if entry_point not in self._reached:
            points = [entry_point]
            outflows: set[Outflow] | None = set()
            for point in points:  # it grows
                for plan_node in point.plan_nodes:
                    node = plan_node.node
                    if isinstance(node, FanOut) and node.entry_point not in points:
                        points.append(node.entry_point)
                    elif isinstance(node, LogicNode):
                        outflows = None
                    elif isinstance(node, Node) and outflows is not None:
                        outflows.add(node.outflow)
            self._reached[entry_point] = None if outflows is None else frozenset(outflows)
        return self._reached[entry_point]

    def _fan_out(self, cls: type, config: NodeConfig, plan: Plan) -> FanOut:
        root = plan.nodes[config.name]
        while root.before:
            root = root.before[0]
        entry_point = plan.entry_points[config.instance_groups[0].spec.params.jump]
        return FAN_OUTS[cls](
            config,
            self._loop,
            self._clock,
            root=root.name,
            entry_point=entry_point,
            start=self.enter_for,
            pressure=self._pressure,
        )

    async def start(self) -> None:
        """Load all backends. Raises `BackendError` for the first that can't be loaded."""
        nodes: tuple[Node | CompositeNode, ...] = (*self.nodes, *self.composites)
        starting = [asyncio.ensure_future(node.start()) for node in nodes]
        if self._takes_tensors and "numpy" not in sys.modules:
            # What reads requests imports it at its first use, and no request should wait for that.
            starting.append(asyncio.ensure_future(asyncio.to_thread(_import_numpy)))
        try:
            await asyncio.gather(*starting)
        except BaseException:
            await asyncio.wait([*starting, asyncio.ensure_future(self.close(1.0))])
            raise

    def abandon(self, reason: str) -> None:
        """Fail all queued, running and waiting entries with `NotReady`."""
        for composite in self.composites:
            composite.abandon(reason)
        for node in self.nodes:
            node.abandon(reason)

    def refuse_queued(self, reason: str) -> None:
        """Fail all queued and waiting entries with `NotReady`."""
        for composite in self.composites:
            composite.abandon(reason)
        for node in self.nodes:
            node.refuse_queued(reason)

    async def close(self, timeout: float) -> None:
        """Fail what is left with `NotReady`, and end the threads within `timeout` seconds."""
        self._closed = True
        nodes: tuple[Node | CompositeNode, ...] = (*self.composites, *self.nodes)
        # All are abandoned before any is closed. Otherwise an item could go from a node that still
        # runs to one that is closed, and would never be answered.
        reason = f"pipeline {self._name!r} is closed"
        self.abandon(reason)
        self.model_calls.close(reason)  # so that no thread waits for an answer
        await asyncio.gather(*[node.close(timeout) for node in nodes])

    def enter(self, entry_point: EntryPoint, run: Run, now: float) -> Submission:
        """Start a run. `now` is in seconds."""
        if entry_point.linear and run.trace is None:
            run.plan_node = entry_point.root
            entry_point.root.node.enqueue(run, now)
            return run
        graph_run = self.prepare(entry_point, run, now)
        graph_run.enter_graph(now)
        return graph_run

    def prepare(self, entry_point: EntryPoint, run: Run, now: float) -> GraphRun:
        """Return the run of a request that comes at `now`, which has not begun yet."""
        if entry_point.stream is None:
            return GraphRun(run, entry_point, now)
        return StreamRun(run, entry_point, entry_point.stream, self._loop, now)

    def enter_rounds(
        self, entry_point: EntryPoint, request: Run, admission: Admission, now: float
    ) -> Rounds:
        """Start a request that may pass the graph several times (`loop`)."""
        rounds = Rounds(request, admission, self._entry_points, self._max_rounds, self.enter)
        rounds.start(entry_point, now)
        return rounds

    def enter_for(self, entry_point: EntryPoint, run: Run, entry: Entry, now: float) -> Submission:
        """Start a run on behalf of an entry that waits for it.

        Raises `NotReady` if the pipeline is closed: Python logic may call when it is cancelled.
        """
        if self._closed:
            raise NotReady(f"pipeline {self._name!r} is closed")
        run.request_id = entry.request_id
        run.context = entry.context
        run.client = entry.client
        run.ticket = entry.request_ticket()
        run.trace = self.trace_of(entry)
        return self.enter(entry_point, run, now)

    @staticmethod
    def trace_of(entry: Entry) -> Trace | None:
        """Return the trace for one more part of a waiting entry.

        None if the entry is not traced, or has traced enough parts.
        """
        if not isinstance(entry, NodeVisit) or entry.run.trace is None:
            return None
        return entry.run.trace.part(entry.plan_node.name)


def _on_rings(following: dict[RunningNode, set[RunningNode]]) -> set[RunningNode]:
    """Return the nodes on rings, and those between two rings."""
    left = set(following)
    for edges in (following, _reversed(following)):
        ends = {node: sum(other in left for other in edges[node]) for node in left}
        before = _reversed(edges)
        done = [node for node, count in ends.items() if not count]
        for node in done:  # it grows
            left.discard(node)
            for other in before[node]:
                if other in left:
                    ends[other] -= 1
                    if not ends[other]:
                        done.append(other)
    return left


def _reversed(edges: dict[RunningNode, set[RunningNode]]) -> dict[RunningNode, set[RunningNode]]:
    before: dict[RunningNode, set[RunningNode]] = {node: set() for node in edges}
    for node, others in edges.items():
        for other in others:
            before[other].add(node)
    return before
