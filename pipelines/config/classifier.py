"""The pipeline of a bare ONNX image classifier.

`penstock serve model.onnx` serves it without a pipeline file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.engines.graph import softmax_is_last
from penstock.backends.errors import ConfigError, Problem
from penstock.backends.operators.labels import labels_of_model, read_labels

from .source import Tables, name_of

COLORS = {1: "gray", 3: "rgb"}
"""For each number of channels of the model's input, the colour that images are converted to."""
FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})


def classifier(path: Path, labels: Path | None) -> Tables:
    """Make the tables of two nodes: one decodes and prepares images, the other runs the model.

    Without `labels`, the names in the model's metadata are its labels, if it has any.

    Raises `ConfigError`.
    """
    graph = _read(path)
    channels, height, width = _image_input(graph, path)
    scores = _gives_scores(graph)
    prepare = {
        "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
        "resize_h": height,
        "resize_w": width,
        "color": COLORS[channels],
        "next": "model",
    }
    model: dict[str, Any] = {"backend": "OnnxTensor", "model": str(path.resolve())}
    outputs: dict[str, Any] = {}
    if scores:
        model["backend"] = "S[OnnxTensor,SoftmaxArgMaxTensor]"
        model["SoftmaxArgMaxTensor::softmax"] = not softmax_is_last(graph)
        outputs = {
            "class": {"kind": "integer", "description": "The best class, counted from 0."},
            "score": {"kind": "number", "description": "Its probability."},
        }
    if labels is None and scores and _fits(labels_of_model(path), graph):
        labels = path
    if labels is not None:
        if not scores:
            message = (
                "labels are given, but the model is not a classifier: expected one output, a row "
                "of scores for each image"
            )
            raise ConfigError([Problem(message, str(path))])
        if not labels.is_file():
            message = "there is no such file: expected the labels, one per line"
            raise ConfigError([Problem(message, str(labels))])
        _check_count(labels, _shape(graph.output[0])[0][1], path)
        model["SoftmaxArgMaxTensor::labels"] = str(labels.resolve())
        label = {
            "kind": "text",
            "labels": str(labels.resolve()),
            "description": "The best class's label.",
        }
        outputs = {"label": label, **outputs}
    tables = {"prepare": prepare, "model": model}
    return Tables(
        name_of(path),
        tables,
        pipeline={"outputs": outputs},
        file=str(path),
        directory=path.resolve().parent,
    )


def _read(path: Path) -> Any:
    """Read the graph of the model, without weights that are in files beside it."""
    if not path.is_file():
        raise ConfigError([Problem("there is no such file: expected an ONNX model", str(path))])
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise ConfigError(
            [Problem(f"this is not a valid ONNX model: {error}", str(path))]
        ) from error
    if not graph.node or not graph.output:
        message = "this is not a valid ONNX model: it has no operators or no outputs"
        raise ConfigError([Problem(message, str(path))])
    return graph


def _image_input(graph: Any, path: Path) -> tuple[int, int, int]:
    """Return the channels, height and width of the model's one input."""
    advice = (
        "expected one image, float N×C×H×W with fixed C (1 or 3), H and W; write a pipeline file "
        "(.toml) for other models"
    )
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ConfigError([Problem(f"the model has {len(inputs)} inputs: {advice}", str(path))])
    shape, kind = _shape(inputs[0])
    if (
        len(shape) != 4
        or not all(isinstance(size, int) and size > 0 for size in shape[1:])
        or shape[1] not in COLORS
        or kind not in FLOATS
    ):
        description = f"{kind.lower()} {'×'.join(map(str, shape)) or 'without a shape'}"
        raise ConfigError(
            [Problem(f"the model's input {inputs[0].name!r} is {description}: {advice}", str(path))]
        )
    return shape[1], shape[2], shape[3]


def _gives_scores(graph: Any) -> bool:
    """Return whether the model has one output, a row of scores for each image."""
    return len(graph.output) == 1 and len(_shape(graph.output[0])[0]) == 2


def _fits(names: tuple[str, ...], graph: Any) -> bool:
    """Return whether the metadata of the model has names for its classes."""
    classes = _shape(graph.output[0])[0][1]
    return len(names) == classes if isinstance(classes, int) else bool(names)


def _check_count(labels: Path, classes: Any, path: Path) -> None:
    """Check that there is a label for each class, if the model says how many classes it has.

    Otherwise every request would fail.
    """
    try:
        count = len(read_labels(labels))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem(f"the labels can't be read: {error}", str(labels))]) from error
    if isinstance(classes, int) and classes > 0 and count != classes:
        message = (
            f"found {count} label{'s' * (count != 1)}, expected {classes}: the classes of {path}"
        )
        raise ConfigError([Problem(message, str(labels))])


def _shape(value: Any) -> tuple[list[Any], str]:
    """Return the sizes (a name or ? for one that is not fixed) and ONNX's name of the type."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    sizes = [
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor.shape.dim
    ]
    return sizes, str(TensorProto.DataType.Name(tensor.elem_type))
