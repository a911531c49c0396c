"""Make a TensorRT network of an ONNX model.

The model is converted to a precision, with preprocessing of its first input and post-processing of
its output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BackendError, ConfigError, Problem
from ..normalise import channels_last, fuse_normalisation
from ..postprocess import CLASSIFIERS, SOFTMAX
from ..precision import convert
from .library import Library
from .profiles import Input
from .recipe import Recipe, read_onnx

SCORES_OUTPUT, CLASSES_OUTPUT = "penstock_scores", "penstock_classes"
"""The outputs of a network whose post-processing finds classes: N×`top_k`, the best first."""


class Network(NamedTuple):
    """A network, and what must outlive its build."""

    definition: Any
    """The `INetworkDefinition`."""
    parser: Any
    """The `OnnxParser`, which holds the weights until the engine is built."""

    @property
    def inputs(self) -> list[Input]:
        definition = self.definition
        tensors = [definition.get_input(index) for index in range(definition.num_inputs)]
        return [Input(tensor.name, tuple(tensor.shape)) for tensor in tensors]


def edited(recipe: Recipe) -> Any:
    """Return the model as an `onnx.ModelProto`, converted and with a prepared first input.

    It is in `precision`, and its first input has the transpose and the normalisation. Raises
    BackendError for a file that is not a model, ConfigError for a key that does not fit the model.
    """
    params = recipe.params
    model = read_onnx(recipe.model, str(recipe))
    key = "precision::fp32" if params.precision_fp32 else "precision"
    try:
        # AutoCast reads the file itself. An encrypted model has no such file: it stays in memory.
        model = convert(
            _with_weights(model, recipe, params.precision),
            params.precision,
            params.precision_fp32,
            _plain(recipe.model),
        )
        key = "data_format"
        if params.data_format == "nhwc":
            channels_last(model)
        key = "mean" if params.mean is not None else "std"
        if params.mean is not None or params.std is not None:
            fuse_normalisation(model, params.mean, params.std)
    except ValueError as error:
        raise ConfigError(
            [Problem(f"{recipe.model}: {error}", node=recipe.node, key=key)]
        ) from error
    return model


def parse(recipe: Recipe, library: Library, builder: Any, reported: list[str]) -> Network:
    """Parse the edited model into a network, and add the post-processing.

    `reported` has TensorRT's errors so far. Raises BackendError, which names the node, the file and
    what is not supported, and ConfigError.
    """
    trt = library.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    model = edited(recipe)
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's limit of 2 GiB, an exception without a public class
        raise BackendError(
            f"{recipe}: the model {recipe.model} is too large to be converted here ({error}): "
            "convert the file itself first"
        ) from error
    if not parser.parse(data, str(recipe.model)):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        reasons = "; ".join(dict.fromkeys(errors or reported)) or "it gives no reason"
        raise BackendError(
            f"{recipe}: {library.name} {library.version} can't use the model {recipe.model}: "
            f"{reasons}"
        )
    _check_inputs(recipe, network, trt)
    classifier = CLASSIFIERS.get(recipe.params.postprocessor or "")
    if classifier is not None:
        _add_classes(recipe, network, trt, softmax=classifier)
    elif recipe.params.postprocessor in SOFTMAX:
        scores = _the_scores(recipe, network)
        name = scores.name
        network.unmark_output(scores)
        scores.name = f"{name}_before_softmax"
        _mark(network, _softmax(network, trt, scores), name)
    return Network(network, parser)


def _with_weights(model: Any, recipe: Recipe, precision: str | None) -> Any:
    """Load weights from files beside the model, if they must be converted.

    Otherwise they stay in their files, however large.
    """
    if precision in (None, "fp32"):
        return model
    from onnx.external_data_helper import load_external_data_for_model

    load_external_data_for_model(model, str(recipe.model.parent))
    return model


def _plain(path: Path) -> Path | None:
    """Return the path of a plain .onnx file, None for an encrypted one."""
    return path if path.suffix.lower() == ".onnx" else None


def _parser_error(error: Any) -> str:
    operator, name = error.node_operator(), error.node_name()
    place = (
        f"node {error.node()} ({' '.join(filter(None, (operator, name)))}): " if operator else ""
    )
    reason = error.desc().strip()
    if "Plugin not found" in reason:  # the parser takes an unknown operator for a plugin
        reason = f"the operator {operator} is not supported, and there is no plugin of that name"
    elif reason in ("", "false"):  # all that the parser says is the condition that failed
        reason = f"the operator {operator} is not supported"
    return f"{place}{reason}"


def _check_inputs(recipe: Recipe, network: Any, trt: Any) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise BackendError(
                f"{recipe}: input {tensor.name} of {recipe.model} is a shape tensor: expected "
                "inputs that are data"
            )


def _the_scores(recipe: Recipe, network: Any) -> Any:
    """Return the network's one output, N×K scores. Raises ConfigError."""
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        names = ", ".join(f"{output.name} of {len(output.shape)} axes" for output in outputs)
        message = (
            f"{recipe.params.postprocessor} needs a model with one output, N×K scores; "
            f"{recipe.model} has {names}"
        )
        raise ConfigError([Problem(message, node=recipe.node, key="postprocessor")])
    return outputs[0]


def _softmax(network: Any, trt: Any, scores: Any) -> Any:
    """Add a softmax, in float32 whatever the network computes in."""
    if scores.dtype != trt.DataType.FLOAT:
        scores = network.add_cast(scores, trt.DataType.FLOAT).get_output(0)
    layer = network.add_softmax(scores)
    layer.axes = 1 << 1
    layer.name = "penstock_softmax"
    return layer.get_output(0)


def _add_classes(recipe: Recipe, network: Any, trt: Any, *, softmax: bool) -> None:
    """Replace the scores by the `top_k` best scores and their classes. Raises ConfigError."""
    scores = _the_scores(recipe, network)
    count, wanted = scores.shape[1], recipe.params.top_k
    if wanted > count >= 0:
        message = (
            f"top_k is {wanted}, but output {scores.name} of {recipe.model} has {count} scores"
        )
        raise ConfigError([Problem(message, node=recipe.node, key="top_k")])
    network.unmark_output(scores)
    best = network.add_topk(
        _softmax(network, trt, scores) if softmax else scores, trt.TopKOperation.MAX, wanted, 1 << 1
    )
    best.name = "penstock_topk"
    _mark(network, best.get_output(0), SCORES_OUTPUT)
    _mark(network, best.get_output(1), CLASSES_OUTPUT)


def _mark(network: Any, tensor: Any, name: str) -> None:
    tensor.name = name
    network.mark_output(tensor)
