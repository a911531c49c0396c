"""Finds what Triton would refuse in a ModelConfig, and what Penstock does.

The rules are those of Triton's `ValidateModelConfig`; the words are our own. What a model's file
or its backend must have is found where the model is translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.params import elements_between_open_sizes

from ..config.tables import MOST_INSTANCES
from .completion.normalise import PLATFORMS
from .fields.classify import classify, refusals
from .model import TritonModel

Found = Iterator[tuple[str, str]]
"""Fields, and what is wrong with each."""

_CONTROL_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_ID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def validate(model: TritonModel) -> Iterator[Problem]:
    """Yield what is wrong with the configuration of a model."""
    refused = refusals(classify(model.config, model.backend), model.file)
    yield from refused
    named = {problem.key for problem in refused}
    for field, message in _rules(model.config):
        if field not in named:
            yield model.problem(field, message)


def _rules(config: Any) -> Found:
    yield from _backend(config)
    if config.max_batch_size < 0:
        yield "max_batch_size", f"found {config.max_batch_size}: expected 0 or more"
    policy = config.version_policy
    if policy.HasField("latest") and not policy.latest.num_versions:
        yield "version_policy.latest.num_versions", "found 0: expected 1 or more"
    for kind in ("input", "output"):
        names: set[str] = set()
        for index, tensor in enumerate(getattr(config, kind)):
            path = f"{kind}[{index}]"
            yield from _tensor(tensor, path, config.max_batch_size > 0)
            if tensor.name in names:
                yield f"{path}.name", f"found {tensor.name!r} twice: expected another name"
            names.add(tensor.name)
    if config.HasField("dynamic_batching"):
        yield from _dynamic_batching(config.dynamic_batching, config.max_batch_size)
    if config.HasField("sequence_batching"):
        yield from _sequence_batching(config.sequence_batching, config.max_batch_size)
    yield from _ensemble(config)
    yield from _instances(config)
    yield from _response_cache(config)
    yield from _metrics(config)


def _backend(config: Any) -> Found:
    platform, backend = config.platform, config.backend
    if not backend and not platform:
        yield "backend", "no backend is named, and the model's files show none: expected one"
    elif platform == "ensemble" and backend:
        yield "backend", f"found {backend!r}: an ensemble has no backend, expected none"
    elif not backend and platform != "ensemble":
        yield "platform", f"found {platform!r} without a backend: expected one"
    elif backend in PLATFORMS.values() and PLATFORMS.get(platform, backend) != backend:
        yield "platform", f"found {platform!r} with the backend {backend!r}: expected one of them"


def _tensor(tensor: Any, path: str, batched: bool) -> Found:
    if not tensor.name:
        yield f"{path}.name", "it has no name: expected one"
    if not tensor.data_type:
        yield f"{path}.data_type", f"tensor {tensor.name!r} has no data_type: expected one"
    if not tensor.dims:
        yield f"{path}.dims", f"tensor {tensor.name!r} has no dims: expected [ 1 ] for a scalar"
    yield from _sizes(tensor.dims, f"{path}.dims")
    if tensor.HasField("reshape"):
        shape = f"{path}.reshape.shape"
        if wrong := [*_sizes(tensor.reshape.shape, shape)]:
            yield from wrong
        elif not tensor.reshape.shape and not batched:
            yield shape, "it is empty, which needs a batch dimension: expected sizes"
        elif elements_between_open_sizes(tensor.dims) != elements_between_open_sizes(
            tensor.reshape.shape
        ):
            yield (
                shape,
                f"found {[*tensor.reshape.shape]} for dims {[*tensor.dims]}: expected as many "
                "elements, and in the same order of sizes around each -1",
            )
    layout = getattr(tensor, "format", 0)
    if layout and len(tensor.dims) != 3:
        yield f"{path}.format", f"found dims {[*tensor.dims]}: expected the 3 of an image"


def _sizes(sizes: Iterable[int], path: str) -> Found:
    for size in sizes:
        if size < 1 and size != -1:
            yield path, f"found {size}: expected 1 or more, or -1 for any size"


def _preferred(sizes: Iterable[int], most: int, path: str) -> Found:
    for size in sizes:
        if not 0 < size <= most:
            yield path, f"found {size}: expected 1 to max_batch_size ({most})"


def _dynamic_batching(batching: Any, most: int) -> Found:
    place = "dynamic_batching"
    yield from _preferred(batching.preferred_batch_size, most, f"{place}.preferred_batch_size")
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        yield f"{place}.default_priority_level", f"found {default}: expected 1 to {levels}"
    policies = {"default_queue_policy": batching.default_queue_policy}
    for level, policy in batching.priority_queue_policy.items():
        path = f"priority_queue_policy.{level}"
        policies[path] = policy
        if levels and not 1 <= level <= levels:
            yield f"{place}.{path}", f"found level {level}: expected 1 to {levels}"
    if not batching.preserve_ordering:
        return
    if levels > 1:
        message = f"found {levels} with preserve_ordering: expected 1, requests keep their order"
        yield f"{place}.priority_levels", message
    for path, policy in policies.items():
        if policy.default_timeout_microseconds and policy.timeout_action:
            message = (
                "found DELAY with preserve_ordering: expected REJECT, requests keep their order"
            )
            yield f"{place}.{path}.timeout_action", message


def _sequence_batching(batching: Any, most: int) -> Found:
    place = "sequence_batching"
    seen_inputs: set[str] = set()
    seen_kinds: set[str] = set()
    for index, tensor in enumerate(batching.control_input):
        path = f"{place}.control_input[{index}]"
        if not tensor.name:
            yield f"{path}.name", "it has no name: expected that of the model's input"
        elif tensor.name in seen_inputs:
            yield f"{path}.name", f"found {tensor.name!r} twice: expected an input for each control"
        seen_inputs.add(tensor.name)
        for number, control in enumerate(tensor.control):
            where = f"{path}.control[{number}]"
            kind = _enum(control, "kind")
            if kind in seen_kinds:
                yield f"{where}.kind", f"found {kind} twice: expected each kind once"
            seen_kinds.add(kind)
            yield from _control(control, kind, where)
    for index, state in enumerate(batching.state):
        yield from _state(state, f"{place}.state[{index}]")
    yield from _preferred(
        batching.oldest.preferred_batch_size, most, f"{place}.oldest.preferred_batch_size"
    )
    utilization = batching.direct.minimum_slot_utilization
    if not 0 <= utilization <= 1:
        message = f"found {utilization:g}: expected 0 to 1"
        yield f"{place}.direct.minimum_slot_utilization", message


def _control(control: Any, kind: str, path: str) -> Found:
    given = [field for field in _CONTROL_VALUES if getattr(control, field)]
    if kind == "CONTROL_SEQUENCE_CORRID":
        if given:
            yield f"{path}.{given[0]}", f"{kind} has no values for false and true: expected none"
        if _enum(control, "data_type") not in _ID_TYPES:
            yield f"{path}.data_type", f"expected one of {', '.join(_ID_TYPES)} for {kind}"
    elif len(given) != 1:
        found = f"found {', '.join(given)}" if given else "found no values"
        yield path, f"{found} for {kind}: expected one of {', '.join(_CONTROL_VALUES)}"
    elif len(values := getattr(control, given[0])) != 2:
        yield f"{path}.{given[0]}", f"found {len(values)} values: expected those of false and true"


def _state(state: Any, path: str) -> Found:
    for field in ("input_name", "output_name"):
        if not getattr(state, field):
            yield f"{path}.{field}", "it has no name: expected that of the model's tensor"
    if not state.data_type:
        yield f"{path}.data_type", "it has no data_type: expected one"
    yield from _sizes(state.dims, f"{path}.dims")
    if len(state.initial_state) > 1:
        yield f"{path}.initial_state", f"found {len(state.initial_state)}: expected one at most"
    for initial in state.initial_state:
        place = f"{path}.initial_state"
        if not initial.name:
            yield f"{place}.name", "it has no name: expected one"
        if initial.data_type != state.data_type:
            yield f"{place}.data_type", "it differs from that of the state: expected the same"
        if len(initial.dims) != len(state.dims) or any(
            size == -1 or own not in (size, -1)
            for size, own in zip(initial.dims, state.dims, strict=True)
        ):
            message = (
                f"found {[*initial.dims]}: expected the state's {[*state.dims]}, with a size in "
                "place of each -1"
            )
            yield f"{place}.dims", message


def _enum(message: Any, field: str) -> str:
    """Return the name of an enum field's value."""
    number = getattr(message, field)
    known = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number.get(number)
    return str(number) if known is None else str(known.name)


def _ensemble(config: Any) -> Found:
    if config.platform != "ensemble":
        if config.HasField("ensemble_scheduling"):
            yield "ensemble_scheduling", 'expected platform: "ensemble" with it'
        return
    if not config.ensemble_scheduling.step:
        yield "ensemble_scheduling.step", "an ensemble has no step: expected one or more"
    for field in ("instance_group", "model_warmup", "optimization"):
        if field in {descriptor.name for descriptor, _ in config.ListFields()}:
            yield field, "an ensemble has none: expected it in the models that the ensemble calls"


def _instances(config: Any) -> Found:
    for index, group in enumerate(config.instance_group):
        path = f"instance_group[{index}]"
        if not 0 <= group.count <= MOST_INSTANCES:
            yield f"{path}.count", f"found {group.count}: expected 1 to {MOST_INSTANCES}"
        if group.gpus and _enum(group, "kind") in ("KIND_CPU", "KIND_MODEL"):
            yield (
                f"{path}.gpus",
                f"found {[*group.gpus]} with {_enum(group, 'kind')}: expected none",
            )
        for gpu in group.gpus:
            if gpu < 0:
                yield f"{path}.gpus", f"found {gpu}: expected the number of a GPU, 0 or more"


def _response_cache(config: Any) -> Found:
    if not config.response_cache.enable:
        return
    for cause, given in {
        "sequences": config.HasField("sequence_batching"),
        "any number of answers (decoupled)": config.model_transaction_policy.decoupled,
    }.items():
        if given:
            yield "response_cache.enable", f"a model with {cause} keeps no answers: expected false"


def _metrics(config: Any) -> Found:
    for index, control in enumerate(config.model_metrics.metric_control):
        path = f"model_metrics.metric_control[{index}]"
        if not control.metric_identifier.family:
            yield f"{path}.metric_identifier.family", "it names no metric: expected one"
        if not control.histogram_options.buckets:
            yield f"{path}.histogram_options.buckets", "it has no buckets: expected their bounds"
