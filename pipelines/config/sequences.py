"""What is checked of nodes that keep states of sequences (`[NODE.sequence]`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import (
    BlockingLogic,
    CompositeBackend,
    Decoupled,
    Logic,
)
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.backends.sequences.definition import SequenceConfig

from .definition import NodeConfig


def check_sequence(sequence: SequenceConfig, spec: Spec) -> Iterator[Problem]:
    """Yield what is wrong with the table of a node with this expression."""
    is_logic = issubclass(spec.cls, Logic)
    if issubclass(spec.cls, BlockingLogic):
        message = (
            f"{spec.name} is a generator that blocks, on any thread of its node, so it keeps no "
            "state: expected `async def` with `yield`"
        )
        yield Problem(message, key="sequence")
        return
    if issubclass(spec.cls, Decoupled):
        message = f"{spec.name} is a decoupled model: its node keeps no state of sequences"
        yield Problem(message, key="sequence")
        return
    if issubclass(spec.cls, CompositeBackend) and not is_logic:
        message = f"{spec.name} waits for other nodes and keeps no state: it is for their tables"
        yield Problem(message, key="sequence")
        return
    if is_logic and sequence.strategy == "direct":
        message = (
            'found "direct": Python logic has no batches, so no sequence has a row of one: '
            'expected "oldest"'
        )
        yield Problem(message, key="sequence.strategy")
    tensors = [key for key in ("controls", "state") if getattr(sequence, key)]
    if tensors and not isinstance(spec.params, EngineParams):
        for key in tensors:
            message = (
                f"{spec.name} is no engine: only a model has inputs for it. Python reads "
                "item['sequence'], which has start, end, id and state"
            )
            yield Problem(message, key=f"sequence.{key}")
    inputs = Counter(
        [
            *(control.input for control in sequence.controls),
            *(state.input for state in sequence.state),
        ]
    )
    outputs = Counter([state.output for state in sequence.state])
    for kind, names in (("input", inputs), ("output", outputs)):
        for name in [name for name, count in names.items() if count > 1]:
            message = f"the {kind} {name!r} is named twice: each has one use"
            yield Problem(message, key="sequence")


def check_sequences(
    nodes: Mapping[str, NodeConfig],
    defaults: Mapping[str, Any],
    exposed: Container[str],
    loop: bool,
) -> Iterator[Problem]:
    """Yield what is wrong with nodes that keep states in a pipeline as a whole."""
    if "sequence" in defaults:
        message = "this is a table of one node: it can't be a default for all nodes"
        yield Problem(message, key="sequence")
    keeping = {name for name, node in nodes.items() if node.sequence is not None}
    for name, node in nodes.items():
        if node.shares in keeping:
            message = (
                f"it uses the instances of {node.shares!r}, which keeps states of sequences: such "
                "a node can't be shared"
            )
            yield Problem(message, node=name)
        elif node.shares is None and name in keeping:
            if name in exposed:
                message = "a node that keeps states of sequences can't be called by itself"
                yield Problem(message, node="pipeline", key=f"expose.{name}")
            if loop:
                message = (
                    "a step would pass the node several times: a pipeline that loops can't keep "
                    "states of sequences"
                )
                yield Problem(message, node=name, key="sequence")
