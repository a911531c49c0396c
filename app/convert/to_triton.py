"""Pipelines become models of a Triton repository.

A node that Triton has itself (an ONNX model, a TritonPythonModel, an ensemble) becomes that. Any
other pipeline becomes a Python model that runs the pipeline: `embedded.py`, in Triton's process.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, PenstockError, Problem
from penstock.backends.expressions.composite import Ensemble
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.config.tables import protocol_type
from penstock.pipelines.config.versions import VERSION_FILE
from penstock.pipelines.directory import read_source
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.triton.folders import CONFIG_FILE
from penstock.pipelines.triton.messages import new_config
from penstock.pipelines.triton.translation.ports import DECODE_PARAMETER

from ..v2.models.description import config_of
from ..v2.models.model import Model
from .embedded import FILE
from .written import Converted

MODEL_PY = '''\
"""Runs the pipeline of penstock.toml, which lies beside this file. Triton's Python needs Penstock:
pip install penstock-serve
"""

from penstock.app.convert.embedded import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

TRITON_TYPES = {"BYTES": "STRING"}
"""Types that ModelConfig calls otherwise than the protocol."""

LEFT_OUT = frozenset({".git", "__pycache__", ".venv"})


def convert_pipelines(path: Path) -> tuple[list[Converted], list[ConfigError]]:
    """Convert a pipeline's file, or all pipelines of a directory. Blocks: models are loaded, to
    learn what they take.

    Returns those that could be converted, and the errors of the others.
    """
    read = read_source(path)
    converted: dict[str, Converted] = {}
    errors = [*read.unread.values()]
    failed: set[str] = set()
    for config in read.configs:
        if config.name in failed:
            continue
        result = converted.setdefault(config.name, Converted(config.name))
        try:
            _convert(config, result)
        except ConfigError as error:
            errors.append(error)
            failed.add(config.name)
            del converted[config.name]
    return list(converted.values()), errors


def _convert(config: PipelineConfig, result: Converted) -> None:
    """Add the files of a version of a pipeline to `result`."""
    version = config.version
    if not version.isdecimal():
        taken = [int(Path(name).parts[1]) for name in result.texts if name.count("/") > 1]
        version = str(max(taken, default=0) + 1)
        message = f"{config.name}: version {config.version} is {version}: Triton counts versions"
        result.notes.append(message)
    folder = f"{config.name}/{version}"
    spec = _only_spec(config)
    if spec is not None and issubclass(spec.cls, Ensemble):
        message = _of_ensemble(config, spec)
        result.texts[f"{folder}/.keep"] = ""  # Triton needs a folder for each version
    elif spec is not None and spec.name.startswith("TritonPython"):
        message = _of_python(config, spec, result, folder)
    else:
        description = asyncio.run(_described(config))
        message = _of_description(config, description)
        if spec is not None and _is_onnx(config, spec, description):
            message.backend = "onnxruntime"
            source = _file(config, spec.params.model)
            message.default_model_filename = source.name if source.name != "model.onnx" else ""
            for file in source.parent.glob(f"{source.name}*"):  # external data too
                result.copies[f"{folder}/{file.name}"] = file
        else:
            _embed(config, message, result, folder)
    for output in config.outputs:
        if output.labels is not None and not output.labels.endswith(".onnx"):
            result.copies[f"{config.name}/{Path(output.labels).name}"] = _file(
                config, output.labels
            )
    decoded = [f"{port.name}={port.decode.preset}" for port in config.inputs if port.decode]
    if decoded:
        message.parameters[DECODE_PARAMETER].string_value = ",".join(decoded)
    written, text = f"{config.name}/{CONFIG_FILE}", _text(message)
    if result.texts.setdefault(written, text) != text:
        wrong = "its versions differ in more than their files: Triton has one configuration for all"
        raise ConfigError([Problem(wrong, config.source)])


def _only_spec(config: PipelineConfig) -> Spec | None:
    """Return the one backend of a pipeline; None if it has several."""
    if len(config.nodes) != 1:
        return None
    (node,) = config.nodes.values()
    if len(node.instance_groups) != 1 or node.instance_groups[0].spec.children:
        return None
    return node.instance_groups[0].spec


def _of_ensemble(config: PipelineConfig, spec: Spec) -> Any:
    (node,) = config.nodes.values()
    message = _declared(config, node.instance_groups[0].max or 0)
    message.platform = "ensemble"
    for step in spec.params.steps:
        written = message.ensemble_scheduling.step.add()
        written.model_name = step.model
        written.model_version = int(step.version) if step.version else -1
        written.input_map.update(step.inputs)
        written.output_map.update(step.outputs)
    return message


def _of_python(config: PipelineConfig, spec: Spec, result: Converted, folder: str) -> Any:
    """Describe a Python model of Triton's, by the configuration that it came with."""
    from google.protobuf import json_format

    message = new_config()
    json_format.ParseDict(dict(spec.params.triton_config), message, ignore_unknown_fields=True)
    message.name = config.name
    (node,) = config.nodes.values()
    (group,) = node.instance_groups
    if message.max_batch_size and group.max is not None:
        message.max_batch_size = group.max
    if len(message.instance_group) == 1:
        message.instance_group[0].count = group.instances
    source = _file(config, spec.params.model)
    for file in source.parent.iterdir():
        if file.name not in LEFT_OUT | {VERSION_FILE}:
            result.copies[f"{folder}/{file.name}"] = file
    return message


def _declared(config: PipelineConfig, most: int) -> Any:
    """Describe a pipeline by the tensors that its file declares, all of them."""
    message = new_config()
    message.name = config.name
    message.max_batch_size = most if config.batched else 0
    _set_policy(config, message)
    for ports, written in ((config.inputs, message.input), (config.outputs, message.output)):
        for port in ports:
            dtype = protocol_type(port.dtype) if port.dtype else None
            if dtype is None or port.shape is None:
                problem = f"Triton needs its dtype and shape: {port.name!r} has not both"
                raise ConfigError([Problem(problem, config.source, "pipeline", port.name)])
            tensor = written.add()
            tensor.name = port.name
            tensor.data_type = _type(dtype)
            tensor.dims.extend(port.shape[1:] if message.max_batch_size else port.shape)
            if written is message.input:
                tensor.optional = port.optional
            elif port.labels is not None:
                tensor.label_filename = Path(port.labels).name
    return message


async def _described(config: PipelineConfig) -> dict[str, Any]:
    """Load a pipeline, and return how it describes itself below /v2. Raises ConfigError."""
    if config.stream_input is not None:
        message = f"{config.stream_input.name!r} is a stream: Triton has no such inputs"
        raise ConfigError([Problem(message, config.source, "pipeline", "inputs")])
    pipeline = Pipeline(config)
    try:
        await pipeline.start()
    except PenstockError as error:
        message = f"it must be loaded to learn what it takes: {error}"
        raise ConfigError([Problem(message, config.source)]) from error
    try:
        return config_of(Model(pipeline))
    finally:
        await pipeline.close()


def _of_description(config: PipelineConfig, description: Mapping[str, Any]) -> Any:
    """Describe a pipeline as it describes itself."""
    message = new_config()
    message.name = config.name
    message.max_batch_size = description["max_batch_size"]
    _set_policy(config, message)
    for key in ("input", "output"):
        for tensor in description[key]:
            written = getattr(message, key).add()
            written.name = tensor["name"]
            written.data_type = _type(tensor["data_type"].removeprefix("TYPE_"))
            written.dims.extend(tensor["dims"])
            if key == "input":
                written.optional = tensor["optional"]
            else:
                written.label_filename = tensor["label_filename"]
    batching = description.get("dynamic_batching")
    if batching and message.max_batch_size:
        delay = batching["max_queue_delay_microseconds"]
        message.dynamic_batching.max_queue_delay_microseconds = delay
    if description["model_transaction_policy"]["decoupled"]:
        message.model_transaction_policy.decoupled = True
    for group in description["instance_group"]:
        written = message.instance_group.add()
        written.count = group["count"]
        written.kind = written.KIND_GPU if group["kind"] == "KIND_GPU" else written.KIND_CPU
        written.gpus.extend(group["gpus"])
    return message


def _is_onnx(config: PipelineConfig, spec: Spec, description: Mapping[str, Any]) -> bool:
    """Return whether ONNX Runtime alone gives the same answers: no key changes what the model
    takes or gives, and the names are those of the model.
    """
    if spec.name != "OnnxTensor" or not isinstance(spec.params, EngineParams):
        return False
    free = {"model", "max", "min", "batched", "threads", "warm_up", "inputs", "outputs"}
    changed = spec.params.model_dump(exclude_defaults=True)
    if set(changed) - free or str(spec.params.model).endswith(".encrypted"):
        return False
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(_file(config, spec.params.model)), providers=["CPUExecutionProvider"]
    )
    known = {port.name for port in (*session.get_inputs(), *session.get_outputs())}
    return all(
        tensor["name"] in known for key in ("input", "output") for tensor in description[key]
    ) and not any(node.sequence for node in config.nodes.values())


def _embed(config: PipelineConfig, message: Any, result: Converted, folder: str) -> None:
    """Make the model a Python model that runs the pipeline, with the files beside its own."""
    source = Path(config.source)
    if not config.source.endswith(".toml"):
        raise ConfigError([Problem("expected a pipeline from a .toml file", config.source)])
    message.backend = "python"
    del message.instance_group[:]
    group = message.instance_group.add()
    group.count, group.kind = 1, group.KIND_CPU  # the nodes choose their devices and instances
    result.texts[f"{folder}/model.py"] = MODEL_PY
    result.texts[f"{folder}/{FILE}"] = source.read_bytes()
    for name, file in _files_of(config):
        result.copies[os.path.normpath(f"{folder}/{name}")] = file
    result.notes.append(
        f"{config.name}: it is more than one of Triton's models, so it runs Penstock inside "
        "Triton's Python backend, which needs penstock-serve installed"
    )


def _files_of(config: PipelineConfig) -> Iterator[tuple[str, Path]]:
    """Yield the files that the pipeline's text names, all Python files beside it, and what lies in
    folders that it names. A file beside a named one whose name goes on from it belongs to it
    (`model.onnx.data`).

    Raises ConfigError for a name that leads out of the model's folder in the repository.
    """
    text = Path(config.source).read_text(encoding="utf-8")
    for name in dict.fromkeys(re.findall(r'"(\.\./[^"]+|/[^"]+)"', text)):
        if not (config.directory / name).exists():
            continue
        if name.startswith("/") or Path(os.path.normpath(name)).parts[:2] == ("..", ".."):
            message = f"names {name!r}: expected a file in the pipeline's folder, to be copied"
            raise ConfigError([Problem(message, config.source)])
        yield name, config.directory / name
    for file in sorted(config.directory.rglob("*")):
        path = file.relative_to(config.directory)
        if not file.is_file() or file.suffix == ".toml" or LEFT_OUT & set(path.parts):
            continue
        name = path.as_posix()
        folder = f"{path.parts[0]}" if len(path.parts) > 1 else ""
        if (
            file.suffix == ".py"
            or any(start in text for start in _starts(name))
            or (folder and re.search(rf'"{re.escape(folder)}/?"', text))
        ):
            yield name, file


def _starts(name: str) -> Iterator[str]:
    """Yield a name, and what is left of it without its last endings, as long as it has one."""
    yield name
    for cut in re.finditer(r"[._][^/._]+$", name):
        start = name[: cut.start()]
        if Path(start).suffix:
            yield start


def _file(config: PipelineConfig, name: str) -> Path:
    file = config.directory / name
    return file if file.exists() else Path(name)


def _set_policy(config: PipelineConfig, message: Any) -> None:
    policy = config.version_policy
    if policy is None or (policy.latest is None and not policy.specific):
        message.version_policy.all.SetInParent()
    elif policy.specific and all(one.isdecimal() for one in policy.specific):
        message.version_policy.specific.versions.extend(int(one) for one in policy.specific)
    elif policy.latest is not None:
        message.version_policy.latest.num_versions = policy.latest


def _type(dtype: str) -> int:
    values = type(new_config()).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    number: int = values[f"TYPE_{TRITON_TYPES.get(dtype, dtype)}"].number
    return number


def _text(message: Any) -> str:
    from google.protobuf import text_format

    text: str = text_format.MessageToString(message)
    return text
