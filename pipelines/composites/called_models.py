"""Checks that an ensemble and the models that it calls fit, before it is served.

The rules and most of the words are Triton's (`ensemble_utils.cc` of its core).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.expressions.composite import EnsembleDecoupled, EnsembleStep

from ..config.definition import PipelineConfig, Port
from ..config.ensembles import shape_for_steps, steps_of
from ..config.tables import numpy_type, protocol_type
from ..named_tensors import OPEN, is_batched

Find = Callable[[str, str], PipelineConfig | None]
"""Returns the configuration of a model by name and version ("": the newest); None: unknown."""


def joined(config: PipelineConfig, find: Find) -> PipelineConfig:
    """Check an ensemble against the models that it calls; another pipeline is returned as it is.

    The result answers in parts if a step does. Raises `ConfigError`.
    """
    steps = [step for node in config.nodes.values() for step in steps_of(node)]
    if not steps:
        return config
    models = [_called(config, step, find) for step in steps]
    _check_circle(config, find)
    _check_tensors(config, steps, models)
    streams = _check_streams(config, steps, [_streams(model, find) for model in models])
    if not streams or any(node.streams for node in config.nodes.values()):
        return config
    nodes = {
        name: replace(
            node,
            instance_groups=tuple(
                replace(group, spec=replace(group.spec, cls=EnsembleDecoupled))
                for group in node.instance_groups
            ),
        )
        for name, node in config.nodes.items()
    }
    model_config = config.model_config
    if model_config is not None:
        model_config = {**model_config, "model_transaction_policy": {"decoupled": True}}
    return replace(config, nodes=nodes, model_config=model_config)


def _refuse(config: PipelineConfig, message: str) -> NoReturn:
    node = next(iter(config.nodes))
    raise ConfigError([Problem(message, config.source, node, "steps")])


def _called(config: PipelineConfig, step: EnsembleStep, find: Find) -> PipelineConfig:
    model = find(step.model, step.version)
    if model is None:
        version = f" (version {step.version})" if step.version else ""
        _refuse(
            config,
            f"ensemble {config.name!r} contains models that are not available: {step.model}"
            f"{version}",
        )
    return model


def _check_circle(config: PipelineConfig, find: Find) -> None:
    """Refuse an ensemble that calls itself, or calls others that do, whatever lies between."""
    way: list[str] = []  # from the ensemble to where the search is
    passed: set[str] = set()  # no circle can be reached from them
    ahead = [iter([config.name])]
    while ahead:
        name = next(ahead[-1], None)
        if name is None:
            ahead.pop()
            passed.update(way[-1:])
            del way[-1:]
        elif name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            _refuse(config, f"circular dependency between ensembles: {circle}")
        elif name not in passed:
            model = config if not way else find(name, "")
            way.append(name)
            ahead.append(iter(models_of(model)))


def models_of(config: PipelineConfig | None) -> list[str]:
    """Return the names of the models that an ensemble calls; none for another pipeline."""
    nodes = () if config is None else config.nodes.values()
    return list(dict.fromkeys(step.model for node in nodes for step in steps_of(node)))


def _streams(config: PipelineConfig, find: Find) -> bool:
    """Return whether a model answers in parts, an ensemble by way of the models that it calls."""
    models = [config]
    names: set[str] = set()
    for model in models:  # it grows
        if any(node.streams for node in model.nodes.values()):
            return True
        for name in models_of(model):
            called = None if name in names else find(name, "")
            names.add(name)
            if called is not None:
                models.append(called)
    return False


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The dtype and shape that a model gives a tensor of the ensemble. `dims` lack the batch."""

    model: str
    dtype: str | None
    shape: tuple[int, ...] | None
    dims: tuple[int, ...] | None

    @classmethod
    def of(cls, port: Port, model: PipelineConfig) -> _Tensor:
        shape = port.shape
        dims = shape[1:] if shape is not None and is_batched(model) else shape
        return cls(model.name, numpy_type(port.dtype), shape, dims)


def _check_tensors(
    config: PipelineConfig, steps: Sequence[EnsembleStep], models: Sequence[PipelineConfig]
) -> None:
    tensors = {port.name: _Tensor.of(port, config) for port in _ports_for_steps(config)}
    most = _max_batch_size(config)
    for step, model in zip(steps, models, strict=True):
        bound = _max_batch_size(model)
        if 0 < bound < most:
            _refuse(
                config,
                f"ensemble {config.name!r} allows maximum batch size {most}, but it contains model "
                f"{model.name!r} which only allows maximum batch size to be {bound}",
            )
        for tensor, port in _mapped(config, step, model):
            found = _Tensor.of(port, model)
            known = tensors.setdefault(tensor, found)
            where = f"in ensemble {config.name!r}, ensemble tensor {tensor!r}: inconsistent"
            if known.dtype and found.dtype and known.dtype != found.dtype:
                _refuse(
                    config,
                    f"{where} data type: {protocol_type(known.dtype)} is inferred from model "
                    f"{known.model!r} while {protocol_type(found.dtype)} is inferred from model "
                    f"{found.model!r}",
                )
            if not _agree(known.dims, found.dims) and not _agree(known.shape, found.shape):
                _refuse(
                    config,
                    f"{where} shape: {list(known.shape or ())} is inferred from model "
                    f"{known.model!r} while {list(found.shape or ())} is inferred from model "
                    f"{found.model!r}",
                )


def _ports_for_steps(config: PipelineConfig) -> Iterator[Port]:
    """Yield the inputs and outputs of an ensemble with the shapes that its steps see."""
    params = next(iter(config.nodes.values())).instance_groups[0].spec.params
    batched = is_batched(config)
    for ports, is_input in ((config.inputs, True), (config.outputs, False)):
        for port in ports:
            yield replace(port, shape=shape_for_steps(params, port, batched, is_input=is_input))


def _mapped(
    config: PipelineConfig, step: EnsembleStep, model: PipelineConfig
) -> Iterator[tuple[str, Port]]:
    """Yield the tensors of the ensemble that a step maps, each with the model's own port."""
    where = f"in ensemble {config.name!r},"
    inputs = {port.name: port for port in model.inputs}
    outputs = {port.name: port for port in model.outputs}
    for name, tensor in step.inputs.items():
        if name not in inputs:
            _refuse(
                config,
                f"{where} ensemble tensor {tensor!r} is mapping to non-existing input {name!r} in "
                f"model {model.name!r}",
            )
    for name, port in inputs.items():
        if name not in step.inputs and not port.optional:
            _refuse(
                config,
                f"{where} input {name!r} in model {model.name!r} is not mapped to any ensemble "
                "tensors",
            )
    for name, tensor in step.outputs.items():
        if name not in outputs:
            _refuse(
                config,
                f"{where} ensemble tensor {tensor!r} is mapped from non-existing output {name!r} "
                f"in model {model.name!r}",
            )
    for ports, mapping in ((inputs, step.inputs), (outputs, step.outputs)):
        for name, tensor in mapping.items():
            yield tensor, ports[name]


def _max_batch_size(config: PipelineConfig) -> int:
    """Return the most rows of a request as the configuration says them; 0: it doesn't, or none."""
    size = (config.model_config or {}).get("max_batch_size", 0)
    return int(size)


def _agree(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> bool:
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        size == wanted or OPEN in (size, wanted) for size, wanted in zip(one, other, strict=True)
    )


def _check_streams(
    config: PipelineConfig, steps: Sequence[EnsembleStep], streaming: Sequence[bool]
) -> bool:
    """Refuse a step that joins tensors of different streams. Return whether there are streams.

    A tensor has the number of the stream that it comes from; 0: there is one of it for a request.
    """
    source = {port.name: 0 for port in config.inputs}
    left = list(zip(steps, streaming, strict=True))
    streams = 0
    while left:
        pair = next(pair for pair in left if source.keys() >= {*pair[0].inputs.values()})
        left.remove(pair)
        step, streams_itself = pair
        sources = {source[tensor] for tensor in step.inputs.values()}
        if len(sources) > 1:
            _refuse(
                config,
                f"in ensemble {config.name!r}, step of model {step.model!r} receives inputs "
                "originated from different decoupled models",
            )
        streams += streams_itself
        made = streams if streams_itself else sources.pop()
        source |= dict.fromkeys(step.outputs.values(), made)
    if len({source[port.name] for port in config.outputs}) > 1:
        _refuse(
            config,
            f"in ensemble {config.name!r}, the outputs originate from different decoupled models",
        )
    return streams > 0
