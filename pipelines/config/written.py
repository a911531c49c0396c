"""A pipeline file, with comments, for an ONNX model: what `penstock init` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.item import may_come_from_network

from .classifier import FLOATS, classifier, read_graph, shape_of
from .load import build
from .presets import COLORS, PRESETS, ImageOptions
from .source import Tables, name_of

DTYPES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "STRING": "string",
    **{name.upper(): name for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    )},
}  # fmt: skip
"""ONNX's names of element types -> those of pipeline files."""


class Written(NamedTuple):
    """The text of a pipeline file, and what its user should know."""

    text: str
    warnings: tuple[str, ...] = ()


def pipeline_file(path: Path, labels: Path | None, image: ImageOptions, directory: Path) -> Written:
    """Write a pipeline file for a model, to be saved in `directory`. Raises `ConfigError`."""
    if path.suffix != ".onnx":
        message = "expected an ONNX model (.onnx): other models say too little of themselves"
        raise ConfigError([Problem(message, str(path))])
    graph = read_graph(path)
    if not (_takes_images(graph) or image != ImageOptions() or labels is not None):
        return Written("\n".join(_of_tensors(path, graph, directory)) + "\n")
    tables = classifier(path, labels, image)
    config = build(tables)  # it checks them
    lines = [*_of_images(tables, path, graph, image, directory)]
    return Written("\n".join(lines) + "\n", config.warnings)


def _takes_images(graph: Any) -> bool:
    inputs = _inputs(graph)
    if len(inputs) != 1 or not inputs[0].type.HasField("tensor_type"):
        return False
    shape, kind = shape_of(inputs[0])
    return len(shape) == 4 and shape[1] in COLORS and kind in FLOATS


def _inputs(graph: Any) -> list[Any]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _head(path: Path) -> Iterator[str]:
    yield f"# {path.name} as a pipeline, written by `penstock init`. `penstock check` checks it."
    yield ""
    yield "[pipeline]"
    yield f"name = {json.dumps(name_of(path))}  # in the URL: /predict/{name_of(path)}"
    yield 'description = ""  # for /docs'
    yield ""


def _of_images(
    tables: Tables, path: Path, graph: Any, image: ImageOptions, directory: Path
) -> Iterator[str]:
    prepare, model = tables.nodes["prepare"], tables.nodes["model"]
    outputs: dict[str, dict[str, Any]] = tables.pipeline["outputs"]
    yield from _head(path)
    yield "[pipeline.inputs]"
    yield 'data = { kind = "image" }  # JPEG, PNG, and what else is an image'
    yield ""
    yield "# What is answered besides `result`."
    yield "[pipeline.outputs]"
    for name, port in outputs.items():
        shown = {key: value for key, value in port.items() if key != "labels"}
        if "labels" in port:
            shown["labels"] = _relative(port["labels"], directory)
        yield f"{name} = {_inline(shown)}"
    yield ""
    preset = image.preparation
    yield "# Decodes images and makes them what the model was trained on."
    if image.preset:
        yield f"# Preset {image.preset}: {preset.description}."
    yield "[prepare]"
    yield f"backend = {json.dumps(prepare['backend'])}"
    yield f"resize_h = {prepare['resize_h']}"
    yield f"resize_w = {prepare['resize_w']}"
    yield f'color = "{prepare["color"]}"  # rgb, bgr or gray, as in the training'
    yield 'next = "model"'
    yield ""
    yield f"# Takes {_described(_inputs(graph))}; gives {_described(graph.output)}."
    yield "[model]"
    yield f"backend = {json.dumps(model['backend'])}"
    yield f"model = {json.dumps(_relative(path, directory))}"
    if "mean" in model or "std" in model:
        yield "# The model gets (pixel - mean) / std, for pixels of 0 to 255: as in its training."
        for key in ("mean", "std"):
            if key in model:
                yield f"{key} = {json.dumps(model[key])}"
    else:
        yield "# The model gets pixels of 0 to 255. If it was trained on others, say how, or it"
        yield f"# answers nonsense (--preset knows {', '.join(PRESETS)}):"
        yield "# mean = [123.675, 116.28, 103.53]"
        yield "# std = [58.395, 57.12, 57.375]"
    for key, value in model.items():
        if key.endswith("::labels") and value == str(path.resolve()):
            yield "# The labels are the names in the model's metadata."
        elif key.endswith("::labels"):
            yield f"labels = {json.dumps(_relative(value, directory))}  # one label per line"
        elif key.endswith("::softmax"):
            meaning = "logits: take a softmax" if value else "probabilities already"
            yield f"softmax = {json.dumps(value)}  # the model gives {meaning}"
    if not any(key.endswith("::labels") for key in model) and "," in model["backend"]:
        yield '# labels = "labels.txt"  # one label per line, in the order of the classes'
    yield from _tail()


def _of_tensors(path: Path, graph: Any, directory: Path) -> Iterator[str]:
    yield from _head(path)
    inputs = _inputs(graph)
    for table, values in (("inputs", inputs), ("outputs", graph.output)):
        names = [value.name for value in values]
        declared = table == "outputs" or (
            "data" not in names
            and all(map(may_come_from_network, names))
            and not {"result", "error", "context"}.intersection(names)
        )
        ports = [_tensor_port(value) for value in values]
        if not declared or None in ports or "data" in names:
            yield f"# The {table} are those of the model: {_described(values)}."
            yield ""
            continue
        yield f"[pipeline.{table}]  # -1: any size, such as that of the batch"
        for name, port in zip(names, ports, strict=True):
            yield f"{_key(name)} = {_inline(port or {})}"
        yield ""
    yield f"# Takes {_described(inputs)}; gives {_described(graph.output)}."
    yield "[model]"
    yield 'backend = "OnnxTensor"'
    yield f"model = {json.dumps(_relative(path, directory))}"
    yield from _tail()


def _tail() -> Iterator[str]:
    yield "max = 8  # the most items that run together"
    yield "# batching_timeout = 2  # milliseconds that a batch may wait for more items"
    yield "# instance_num = 1  # copies of the model, each on a thread of its own"


def _tensor_port(value: Any) -> dict[str, Any] | None:
    """Return the port of a tensor; None for one that a file can't declare."""
    if not value.type.HasField("tensor_type"):
        return None
    shape, kind = shape_of(value)
    if kind not in DTYPES:
        return None
    port: dict[str, Any] = {"kind": "tensor", "dtype": DTYPES[kind]}
    if value.type.tensor_type.HasField("shape"):
        port["shape"] = [size if isinstance(size, int) and size > 0 else -1 for size in shape]
    return port


def _described(values: Any) -> str:
    parts = []
    for value in values:
        shape, kind = shape_of(value)
        sizes = "×".join(str(size)[:16] for size in shape) or "one value"
        parts.append(f"{value.name} ({kind.lower()} {sizes})")
    return ", ".join(parts).replace("\n", " ")


def _relative(path: str | Path, directory: Path) -> str:
    return os.path.relpath(Path(path).resolve(), directory.resolve())


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else json.dumps(name, ensure_ascii=False)


def _inline(values: dict[str, Any]) -> str:
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return f"{{ {', '.join(pairs)} }}"
