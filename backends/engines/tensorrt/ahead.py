"""Builds a node's engine before the first load, and lists what it is made from."""

from __future__ import annotations

import torch

from ...base import UNBOUNDED, Context
from ...errors import BackendError, ConfigError, Problem
from ...gpu.device import buckets, choose_device
from ..shapes import UNBOUNDED_WARM_UP_BATCH, check_batch_axes, reorder
from .library import Library, find_library
from .params import TensorrtParams
from .plan import cached_at, find_plan
from .progress import BuiltEngine, Progress
from .recipe import Recipe, message_prefix, plain_suffix, read_onnx


def build_ahead(params: TensorrtParams, context: Context, progress: Progress) -> BuiltEngine:
    """Build and cache the engine that `TensorrtEngine.load` would load.

    Raises BackendError, ConfigError and BuildCancelledError.
    """
    library, recipe = recipe_of(params, context, choose_device(context.device))
    found_plan = find_plan(recipe, library, context, progress, ahead=True)
    path = recipe.model if recipe.is_engine else cached_at(recipe, context, recipe.key(library))
    return BuiltEngine(path, len(found_plan.plan), found_plan.built)


def recipe_of(
    params: TensorrtParams, context: Context, device: torch.device
) -> tuple[Library, Recipe]:
    """Return the library to use and the recipe of a node's engine.

    Raises BackendError and ConfigError, which name the node.
    """
    try:
        library = find_library(params.library)
    except BackendError as error:
        raise BackendError(f"{message_prefix(context.node)}: {error}") from error
    axis = _check_batch_axes(params, context)
    largest = min(params.size_range(axis).max, context.max or UNBOUNDED)
    sizes = buckets(UNBOUNDED_WARM_UP_BATCH if largest == UNBOUNDED else largest)
    recipe = Recipe.of(params, context, sizes, library, gpu_name(device))
    if not recipe.is_engine and (params.input_reorder or params.output_reorder):
        graph = read_onnx(recipe.model, str(recipe)).graph
        weights = {tensor.name for tensor in graph.initializer}
        reorder(
            [value for value in graph.input if value.name not in weights],
            params.input_reorder,
            "input_reorder",
            context,
        )
        reorder(list(graph.output), params.output_reorder, "output_reorder", context)
    return library, recipe


def _check_batch_axes(params: TensorrtParams, context: Context) -> int:
    """Check the key `batch_axis` against an .onnx file, before a build that takes minutes. Return
    the batch axis of the first input. Raises BackendError and ConfigError.
    """
    path = context.resolve(params.model)
    if not params.batch_axis or plain_suffix(path) != ".onnx":
        return 0
    graph = read_onnx(path, message_prefix(context.node)).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        if value.type.tensor_type.HasField("shape")
        else params.batch_axis.get(value.name, 0) + 1  # not known
        for value in (*inputs, *graph.output)
    }
    check_batch_axes(params.batch_axis, ranks, context.node)
    if params.postprocessor not in {None, "", "split", "cpu"}:
        for output in graph.output:
            if params.batch_axis.get(output.name):
                message = (
                    f"{params.postprocessor} takes scores of shape NxK, with the batch on axis 0"
                )
                raise ConfigError([Problem(message, node=context.node, key="batch_axis")])
    return params.batch_axis.get(inputs[0].name, 0) if inputs else 0


def gpu_name(device: torch.device) -> str | None:
    """Return the GPU that an engine is built for, with its compute capability: `NVIDIA A10 8.6`.

    None on the CPU.
    """
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"
