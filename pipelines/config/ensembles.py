"""The tensors of an ensemble: whether each is made once, by something, and for something.

The rules are Triton's (`ValidateEnsembleSchedulingConfig` of its core).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import Ensemble, EnsembleParams, EnsembleStep

from .definition import NodeConfig, Port


def steps_of(node: NodeConfig) -> tuple[EnsembleStep, ...]:
    """Return the steps of an ensemble; none for any other node."""
    for group in node.instance_groups:
        if issubclass(group.spec.cls, Ensemble) and isinstance(group.spec.params, EnsembleParams):
            # Steps that are wrong leave none.
            steps: tuple[EnsembleStep, ...] = getattr(group.spec.params, "steps", ())
            return steps
    return ()


def shape_for_steps(
    params: EnsembleParams, port: Port, batched: bool, *, is_input: bool
) -> tuple[int, ...] | None:
    """Return the shape that the steps see of an input or output of the ensemble (`reshape`)."""
    table = params.reshape.get(port.name)
    if table is None or port.shape is None:
        return port.shape
    return (*port.shape[: 1 if batched else 0], *(table.to if is_input else table.given))


def check_ensembles(
    nodes: Mapping[str, NodeConfig],
    inputs: Sequence[Port] | None,
    outputs: Sequence[Port] | None,
) -> Iterator[Problem]:
    """Yield what is wrong with the ensemble of a pipeline whose nodes are right otherwise."""
    for name, node in nodes.items():
        steps = steps_of(node)
        if not steps:
            continue
        if len(nodes) > 1:
            message = "an ensemble is all of its pipeline: expected no other node"
            yield Problem(message, node=name, key="backend")
        elif not inputs or not outputs:
            message = (
                "an ensemble's tensors have names: expected its inputs and outputs in "
                "[pipeline.inputs] and [pipeline.outputs]"
            )
            yield Problem(message, node=name, key="backend")
        else:
            names = [port.name for port in inputs], [port.name for port in outputs]
            for message in _flow_problems(steps, *names):
                yield Problem(message, node=name, key="steps")
            for tensor in getattr(node.instance_groups[0].spec.params, "reshape", {}):
                if tensor not in {*names[0], *names[1]}:
                    message = f"{tensor!r} is neither an input nor an output of the ensemble"
                    yield Problem(message, node=name, key=f"reshape.{tensor}")


def _flow_problems(
    steps: Sequence[EnsembleStep], inputs: Collection[str], outputs: Collection[str]
) -> Iterator[str]:
    made: set[str] = set()
    for index, step in enumerate(steps):
        for tensor in step.outputs.values():
            if tensor in made:
                yield (
                    f"ensemble tensor {tensor!r} can appear in an output map only once: step "
                    f"{index} makes it again"
                )
            made.add(tensor)
            if tensor in inputs:
                yield f"step {index} makes {tensor!r}, which is an input of the ensemble"
    used = {tensor for step in steps for tensor in step.inputs.values()}
    for name in inputs:
        if name not in used | made:
            yield f"ensemble input {name!r} is not used"
    ready = _ready(steps, inputs)
    for name in outputs:
        if name not in used | made:
            yield f"ensemble output {name!r} is not used: no step makes it"
        elif name not in ready:
            missing = sorted((used | made) - ready - made)
            depends = (
                f": at least one of its depending tensors, {missing[0]!r}, is not connected"
                if missing and missing != [name]
                else ": the steps that lead to it wait for each other"
                if name in made
                else ""
            )
            yield f"output {name!r} is not written{depends}"
    for name in sorted((used | made) - {*outputs}):
        if name not in ready:
            if all(output in ready for output in outputs):
                yield f"ensemble tensor {name!r} is not connected: no step makes it"
        elif name not in used:
            yield f"ensemble tensor {name!r} is unused"


def _ready(steps: Sequence[EnsembleStep], inputs: Collection[str]) -> set[str]:
    """Return the tensors that the inputs lead to."""
    ready = {*inputs}
    left = [*steps]
    while run := [step for step in left if ready.issuperset(step.inputs.values())]:
        left = [step for step in left if step not in run]
        ready.update(tensor for step in run for tensor in step.outputs.values())
    return ready
