"""An ONNX model as a TensorRT network: converted, with its inputs as images come and its outputs as answers go."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BackendError, ConfigError, Problem
from ..normalise import channels_last, fuse_normalisation
from ..postprocess import CLASSIFIERS, SOFTMAX
from .library import Library
from .precision import convert
from .profiles import Input
from .recipe import Recipe, read_onnx

SCORES, CLASSES = "penstock_scores", "penstock_classes"
"""The outputs of a network whose post-processing tells classes: N x `top_k`, the best first."""


class Network(NamedTuple):
    definition: Any
    """The `INetworkDefinition`."""
    parser: Any
    """Holds the weights until the engine is built."""

    @property
    def inputs(self) -> list[Input]:
        definition = self.definition
        tensors = [definition.get_input(index) for index in range(definition.num_inputs)]
        return [Input(tensor.name, tuple(tensor.shape)) for tensor in tensors]


def edited(recipe: Recipe) -> Any:
    """The model as an `onnx.ModelProto`: in `precision`, behind the transpose and the normalisation of its first input.

    Raises BackendError for what is no model, ConfigError for a key that does not fit it.
    """
    params = recipe.params
    model = read_onnx(recipe.model, str(recipe))
    key = "precision::fp32" if params.precision_fp32 else "precision"
    try:
        # AutoCast reads the file itself; what is encrypted stays in memory.
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


def parse(recipe: Recipe, library: Library, builder: Any, said: list[str]) -> Network:
    """The network of the edited model, with post-processing. Raises BackendError that names node, file and what is not supported."""
    trt = library.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    model = edited(recipe)
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's own, above 2 GiB
        raise BackendError(
            f"{recipe}: the model {recipe.model} is too large to be converted here ({error}): convert it before"
        ) from error
    if not parser.parse(data, str(recipe.model)):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        reasons = "; ".join(dict.fromkeys(errors or said)) or "it gives no reason"
        raise BackendError(
            f"{recipe}: {library.name} {library.version} can't use the model {recipe.model}: {reasons}"
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
    """With weights from files beside it, where they are to be converted; else they stay there, however large."""
    if precision in (None, "fp32"):
        return model
    from onnx.external_data_helper import load_external_data_for_model

    load_external_data_for_model(model, str(recipe.model.parent))
    return model


def _plain(path: Path) -> Path | None:
    return path if path.suffix.lower() == ".onnx" else None


def _parser_error(error: Any) -> str:
    operator, name = error.node_operator(), error.node_name()
    place = (
        f"node {error.node()} ({' '.join(filter(None, (operator, name)))}): " if operator else ""
    )
    reason = error.desc().strip()
    if "Plugin not found" in reason:  # it took what it does not know for a plugin
        reason = f"the operator {operator} is not supported, and there is no plugin of that name"
    elif reason in ("", "false"):  # the condition that failed, in C++
        reason = f"the operator {operator} is not supported"
    return f"{place}{reason}"


def _check_inputs(recipe: Recipe, network: Any, trt: Any) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise BackendError(
                f"{recipe}: input {tensor.name} of {recipe.model} is the shape of something: expected tensors of data alone"
            )


def _the_scores(recipe: Recipe, network: Any) -> Any:
    """The one output, N x K."""
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        found = ", ".join(f"{output.name} of {len(output.shape)} axes" for output in outputs)
        message = f"{recipe.params.postprocessor} needs a model with one output, N x K scores; {recipe.model} has {found}"
        raise ConfigError([Problem(message, node=recipe.node, key="postprocessor")])
    return outputs[0]


def _softmax(network: Any, trt: Any, scores: Any) -> Any:
    """In float32, whatever the network computes in."""
    if scores.dtype != trt.DataType.FLOAT:
        scores = network.add_cast(scores, trt.DataType.FLOAT).get_output(0)
    layer = network.add_softmax(scores)
    layer.axes = 1 << 1
    layer.name = "penstock_softmax"
    return layer.get_output(0)


def _add_classes(recipe: Recipe, network: Any, trt: Any, *, softmax: bool) -> None:
    scores = _the_scores(recipe, network)
    count, wanted = scores.shape[1], recipe.params.top_k
    if wanted > count >= 0:
        message = (
            f"top_k is {wanted}, and output {scores.name} of {recipe.model} has {count} scores"
        )
        raise ConfigError([Problem(message, node=recipe.node, key="top_k")])
    network.unmark_output(scores)
    best = network.add_topk(
        _softmax(network, trt, scores) if softmax else scores, trt.TopKOperation.MAX, wanted, 1 << 1
    )
    best.name = "penstock_topk"
    _mark(network, best.get_output(0), SCORES)
    _mark(network, best.get_output(1), CLASSES)


def _mark(network: Any, tensor: Any, name: str) -> None:
    tensor.name = name
    network.mark_output(tensor)
