"""`model_warmup` as what each instance of the node runs before it is ready."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ...config.tables import numpy_type
from ..datatypes import datatype_name, type_name
from ..model import TritonModel

WARM_UP_FOLDER = "warmup"
"""The folder beside `config.pbtxt` with the files of samples."""


def translate_warm_up(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set the samples that the node runs before it is ready. One with batch_size 0 is left out,
    as in Triton.
    """
    samples = [sample for sample in model.config.model_warmup if sample.batch_size > 0]
    if not samples:
        return
    if model.backend == "python" and model.config.HasField("sequence_batching"):
        message = "it is not run: samples of a Python model have no sequences"
        tables.warnings.append(model.problem("model_warmup", message))
        return
    node["warm_up"] = [_sample(sample, model, tables) for sample in samples]


def _sample(sample: Any, model: TritonModel, tables: Tables) -> dict[str, Any]:
    return {
        "name": sample.name,
        "batch_size": sample.batch_size,
        "count": max(1, sample.count),
        "inputs": {
            name: _input(name, sample.inputs[name], model, tables) for name in sample.inputs
        },
    }


def _input(name: str, tensor: Any, model: TritonModel, tables: Tables) -> dict[str, Any]:
    def refuse(field: str, message: str) -> None:
        tables.problems.append(model.problem(f"model_warmup.inputs.{name}.{field}", message))

    dtype = numpy_type(datatype_name(tensor.data_type))
    if dtype is None:
        refuse("data_type", f"found {type_name(tensor.data_type)}, expected a datatype")
    if any(size < 0 for size in tensor.dims):
        refuse("dims", f"found {[*tensor.dims]}, expected sizes without -1")
    kind = tensor.WhichOneof("input_data_type")
    if kind is None:
        refuse("zero_data", "expected zero_data, random_data or input_data_file")
    data = {"zero_data": "zeros", "random_data": "random"}.get(
        kind or "", f"{WARM_UP_FOLDER}/{tensor.input_data_file}"
    )
    return {"dtype": dtype or "float32", "shape": [*tensor.dims], "data": data}
