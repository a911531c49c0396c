"""The pipeline of a bare ONNX image classifier.

`penstock serve model.onnx` serves it without a pipeline file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.engines.graph import looks_normalised_graph, softmax_is_last
from penstock.backends.errors import ConfigError, Problem
from penstock.backends.operators.labels import labels_of_model, read_labels

from .presets import COLORS, PRESETS, ImageOptions, image_keys
from .source import Tables, name_of

FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})


def classifier(path: Path, labels: Path | None, image: ImageOptions | None = None) -> Tables:
    """Make the tables of two nodes: one decodes and prepares images, the other runs the model.

    Without `labels`, the names in the model's metadata are its labels, if it has any. Without
    `image`, RGB or grey pixels go in as they are.

    Raises `ConfigError`.
    """
    image = ImageOptions() if image is None else image
    graph = read_graph(path)
    channels, size = _image_input(graph, path, image)
    prepare, values = image_keys(image, channels, size, str(path))
    model: dict[str, Any] = {"backend": "OnnxTensor", "model": str(path.resolve()), **values}
    answers = image.preparation.answers
    if answers:
        outputs = _detector(path, labels, answers, model)
    else:
        outputs = _scores(path, labels, graph, model)
    warnings = []
    if not image.normalises and looks_normalised_graph(graph):
        message = (
            "it gets pixels from 0 to 255, but looks trained on normalised ones: give --preset "
            f"({', '.join(PRESETS)}), or --mean and --std, as in its training"
        )
        warnings.append(Problem(message, str(path)))
    return Tables(
        name_of(path),
        {"prepare": {**prepare, "next": "model"}, "model": model},
        pipeline={"outputs": outputs},
        file=str(path),
        directory=path.resolve().parent,
        warnings=warnings,
    )


def _scores(path: Path, labels: Path | None, graph: Any, model: dict[str, Any]) -> dict[str, Any]:
    """Let the model's node read scores, if it gives any. Return the outputs to declare."""
    scores = _gives_scores(graph)
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
        _check_labels(labels)
        _check_count(labels, shape_of(graph.output[0])[0][1], path)
        model["SoftmaxArgMaxTensor::labels"] = str(labels.resolve())
        label = {
            "kind": "text",
            "labels": str(labels.resolve()),
            "description": "The best class's label.",
        }
        outputs = {"label": label, **outputs}
    return outputs


def _detector(
    path: Path, labels: Path | None, answers: str, model: dict[str, Any]
) -> dict[str, Any]:
    """Let the model's node read boxes. Return the outputs to declare."""
    model["backend"] = f"S[OnnxTensor,{answers}]"
    if labels is not None:
        _check_labels(labels)
        model[f"{answers}::labels"] = str(labels.resolve())
    description = "The boxes, the best first: box [x1, y1, x2, y2] in pixels, score, class, label."
    return {"result": {"kind": "json", "description": description}}


def _check_labels(labels: Path) -> None:
    if not labels.is_file():
        message = "there is no such file: expected the labels, one per line"
        raise ConfigError([Problem(message, str(labels))])


def read_graph(path: Path) -> Any:
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


def _image_input(graph: Any, path: Path, image: ImageOptions) -> tuple[int, tuple[int, int]]:
    """Return the channels of the model's one input, and the height and width of its images."""
    advice = (
        "expected one image, float N×C×H×W with C of 1 or 3; for other models write a pipeline "
        "file (.toml), or let `penstock init` write it"
    )
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ConfigError([Problem(f"the model has {len(inputs)} inputs: {advice}", str(path))])
    shape, kind = shape_of(inputs[0])
    where = f"the model's input {inputs[0].name!r} is"
    description = f"{kind.lower()} {'×'.join(map(str, shape)) or 'without a shape'}"
    if len(shape) != 4 or shape[1] not in COLORS or kind not in FLOATS:
        raise ConfigError([Problem(f"{where} {description}: {advice}", str(path))])
    own = [size if isinstance(size, int) and size > 0 else None for size in shape[2:]]
    wanted = image.size
    if wanted is None and image.preset:
        wanted = (image.preparation.size,) * 2
    if None in own and wanted is None:
        message = (
            f"{where} {description}: expected one image of a size that is known: give it, height "
            "and width, as in --size 224x224"
        )
        raise ConfigError([Problem(message, str(path))])
    if image.size is not None and any(
        fixed not in (None, given) for fixed, given in zip(own, image.size, strict=True)
    ):
        found = "x".join(map(str, image.size))
        kept = "x".join(str(fixed or "ANY") for fixed in own)
        expected = f"expected {kept}" if None in own else "leave it out"
        message = f"{where} {description}: found the size {found}: {expected}"
        raise ConfigError([Problem(message, str(path), key="size")])
    height, width = (fixed or given for fixed, given in zip(own, wanted or (0, 0), strict=True))
    return int(shape[1]), (height, width)


def _gives_scores(graph: Any) -> bool:
    """Return whether the model has one output, a row of scores for each image."""
    return len(graph.output) == 1 and len(shape_of(graph.output[0])[0]) == 2


def _fits(names: tuple[str, ...], graph: Any) -> bool:
    """Return whether the metadata of the model has names for its classes."""
    classes = shape_of(graph.output[0])[0][1]
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


def shape_of(value: Any) -> tuple[list[Any], str]:
    """Return the sizes (a name or ? for one that is not fixed) and ONNX's name of the type."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    sizes = [
        size.dim_value if size.HasField("dim_value") else size.dim_param or "?"
        for size in tensor.shape.dim
    ]
    return sizes, str(TensorProto.DataType.Name(tensor.elem_type))
