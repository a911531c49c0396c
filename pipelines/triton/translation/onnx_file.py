"""Compares the tensors of a configuration with those of its ONNX file, as Triton does at load."""

from __future__ import annotations

from typing import Any

from ...config.classifier import read_graph
from ...config.source import Tables
from ..completion.onnx import TYPES, dims_of
from ..datatypes import type_name
from ..model import TritonModel


def check_tensors(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Add a problem for each tensor that the file lacks, or has with another type or shape.

    A scalar of the file, which Triton's configurations can't write, has shape [1] for clients: it
    is reshaped. Raises `ConfigError` if the file can't be read.
    """
    file = model.folder / model.model_file
    if file.suffix != ".onnx":  # encrypted: its engine says what does not fit
        return
    graph = read_graph(file)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    required = [name for name in inputs if name not in weights]
    given = [name for name in node["inputs"] if name not in weights]
    if len(given) != len(required):
        message = f"found {len(given)}, expected those of the model: {', '.join(required)}"
        tables.problems.append(model.problem("input", message))
    for field, tensors, known in (
        ("input", model.config.input, inputs),
        ("output", model.config.output, outputs),
    ):
        for index, tensor in enumerate(tensors):
            value = known.get(tensor.name)
            if value is None:
                message = f"found {tensor.name!r}, expected one of {', '.join(known)}"
                tables.problems.append(model.problem(f"{field}[{index}].name", message))
                continue
            _check_type(model, tables, f"{field}[{index}]", tensor, value)
            if field == "input" and tensor.optional and model.batched:
                message = "only models with max_batch_size 0 may have optional inputs"
                tables.problems.append(model.problem(f"{field}[{index}].optional", message))
            _check_dims(model, tables, f"{field}[{index}]", tensor, value)
            if not model.batched and not dims_of(value) and not tensor.HasField("reshape"):
                ones, none = [*tensor.dims], list[int]()
                pair = (ones, none) if field == "input" else (none, ones)
                reshape = node.setdefault("reshape", {})
                reshape[tensor.name] = {"from": pair[0], "to": pair[1]}


def _check_type(model: TritonModel, tables: Tables, field: str, tensor: Any, value: Any) -> None:
    from onnx import TensorProto

    name = str(TensorProto.DataType.Name(value.type.tensor_type.elem_type))
    expected, found = f"TYPE_{TYPES.get(name)}", type_name(tensor.data_type)
    if value.type.HasField("tensor_type") and name in TYPES and found != expected:
        message = f"found {found} for {tensor.name!r}, and the model has {expected}"
        tables.problems.append(model.problem(f"{field}.data_type", message))


def _check_dims(model: TritonModel, tables: Tables, field: str, tensor: Any, value: Any) -> None:
    """Check the dims against a model that says its own. -1 fits any size."""
    if not value.type.tensor_type.HasField("shape"):
        return
    known = dims_of(value)
    dims = [*(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)]
    whole = [-1, *dims] if model.batched else dims
    if not known:
        fits = all(size == 1 for size in whole)
    else:
        fits = len(known) == len(whole) and all(
            -1 in (size, own) or size == own for size, own in zip(whole, known, strict=True)
        )
    if not fits:
        message = f"found {dims} for {tensor.name!r}, and the model has {known}"
        if model.batched:
            message += (
                f" (with the batch in front, as max_batch_size is {model.config.max_batch_size})"
            )
        tables.problems.append(model.problem(f"{field}.dims", message))
