"""TorchServe's archives (`.mar`) become a pipeline file and the folder of their files.

The image classifier and segmenter become pipelines of Penstock's own operators. The other handlers
run by `TorchServeHandler`, and so do these two if their model needs more than an engine gives.
"""

from __future__ import annotations

import ast
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.backends.errors import BackendError, ConfigError, Problem
from penstock.backends.torchserve.loading import find_handler
from penstock.backends.torchserve.manifest import read_manifest, read_yaml
from penstock.backends.torchserve.util import load_label_mapping
from penstock.pipelines.config.source import Tables, fit_name
from penstock.pipelines.config.toml_text import pipeline_toml

from .written import Converted

ARCHIVES = (".mar", ".tar.gz", ".tgz")
"""Endings of archives."""

ENGINES = {".pt": "TorchScriptTensor", ".onnx": "OnnxTensor"}

PREPARE: dict[str, Any] = {
    "backend": "S[DecodeMat,PillowResizeMat,CenterCropMat,CvtColorMat,Mat2Tensor]",
    "resize_short": 256,
    "crop_h": 224,
    "crop_w": 224,
    "color": "rgb",
    "next": "model",
}
MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
"""The mean and deviation of pixels from 0 to 255, as in the preset `imagenet`."""

ANSWERS = {
    "image_classifier": ("TopScoresTensor", "The probabilities of the 5 best classes, by label."),
    "image_segmenter": ("ClassMapTensor", "Class and probability of each of the 224x224 pixels."),
}
"""The last operator of the handlers that become pipelines of operators, and what it answers."""

IMAGES_AT_ONCE = 8
"""`max` of an engine if the archive has no batchSize: these engines check that rows stay apart."""


def is_archive(path: Path) -> bool:
    """Return whether a path is an archive of TorchServe, or the folder of one."""
    return path.name.endswith(ARCHIVES) or (path / "MAR-INF").is_dir()


@contextmanager
def convert_archive(path: Path) -> Iterator[Converted]:
    """Convert an archive, or the folder of one. Its files are there until the end of the context.

    Raises ConfigError for one that can't be read.
    """
    with TemporaryDirectory() as unpacked:
        folder = path if path.is_dir() else _unpack(path, Path(unpacked))
        try:
            yield _convert(folder, path)
        except (BackendError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError([Problem(str(error), str(path))]) from error


def _unpack(path: Path, folder: Path) -> Path:
    try:
        if path.name.endswith(".mar"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ConfigError([Problem(f"this is not an archive: {error}", str(path))]) from error
    inside = list(folder.glob("*/MAR-INF"))  # a .tar.gz has its model's folder
    return inside[0].parent if inside else folder


def _convert(folder: Path, path: Path) -> Converted:
    manifest = read_manifest(folder)
    described = manifest["model"]
    name = fit_name(str(described.get("modelName") or path.name.partition(".")[0]))
    config_file = described.get("configFile")
    options = read_yaml(folder / config_file) if config_file else {}
    converted = Converted(name, copies={name: folder})
    tables = Tables(name, {}, pipeline={"name": name})
    if described.get("modelVersion"):
        tables.pipeline["version"] = str(described["modelVersion"])
    if "responseTimeout" in options:
        tables.pipeline["timeout"] = float(options["responseTimeout"])
    handler, _ = find_handler(str(described["handler"]), folder)
    is_own = not (folder / f"{handler}.py").is_file()
    engine = _engine(described, folder, name) if "pt2" not in options else None
    if is_own and handler in ANSWERS and engine is not None:
        _operators(tables, handler, engine, options)
        labels = load_label_mapping(str(folder / "index_to_name.json"))
        if labels and handler == "image_classifier":
            converted.texts[f"{name}/labels.txt"] = _labels_text(labels)
            tables.nodes["model"]["labels"] = f"{name}/labels.txt"
    else:
        _handler(tables, name, options, streams=_sends_parts(folder))
    if described.get("requirementsFile"):
        file = f"{name}/{described['requirementsFile']}"
        converted.notes.append(f"the model needs what {file} lists: pip install -r {file}")
    heading = [f"{name}: converted from {path.name} ({described['handler']})."]
    converted.texts[f"{name}.toml"] = pipeline_toml(tables, heading)
    return converted


def _engine(described: dict[str, Any], folder: Path, name: str) -> dict[str, Any] | None:
    """Return the keys of the engine that runs the model; None if none does."""
    serialized = described.get("serializedFile")
    model_file = described.get("modelFile")
    if not model_file:
        engine = ENGINES.get(Path(str(serialized)).suffix)
        return None if engine is None else {"backend": engine, "model": f"{name}/{serialized}"}
    class_name = _only_class(folder / model_file)
    if class_name is None:
        return None
    keys = {"backend": "PythonTensor", "model": f"{name}/{model_file}:{class_name}"}
    return keys | ({"state_dict": f"{name}/{serialized}"} if serialized else {})


def _only_class(file: Path) -> str | None:
    """Return the one class of a file; None if it has several, loads its weights in a way of its
    own, or imports other files of the archive.
    """
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError([Problem(f"the model can't be read: {error}", str(file))]) from error
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    imported = {
        name.partition(".")[0]
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    beside = {path.stem for path in file.parent.glob("*")}
    own_loading = any(
        isinstance(node, ast.FunctionDef) and node.name == "load_state_dict"
        for cls in classes
        for node in cls.body
    )
    return (
        classes[0].name if len(classes) == 1 and not own_loading | bool(imported & beside) else None
    )


def _operators(
    tables: Tables, handler: str, engine: dict[str, Any], options: dict[str, Any]
) -> None:
    last, answer = ANSWERS[handler]
    tables.pipeline["inputs"] = {"data": {"kind": "image"}}
    tables.pipeline["outputs"] = {"result": {"kind": "json", "description": answer}}
    tables.nodes["prepare"] = dict(PREPARE)
    tables.nodes["model"] = {
        **engine,
        "backend": f"S[{engine['backend']},{last}]",
        "mean": MEAN,
        "std": STD,
        "max": int(options.get("batchSize", IMAGES_AT_ONCE)),
        **_workers(options),
    }


def _sends_parts(folder: Path) -> bool:
    """Return whether a file of the archive answers in parts."""
    return any(
        b"send_intermediate_predict_response" in file.read_bytes() for file in folder.rglob("*.py")
    )


def _handler(tables: Tables, name: str, options: dict[str, Any], *, streams: bool) -> None:
    tables.pipeline["inputs"] = {"data": {"kind": "bytes", "media_types": ["*/*"]}}
    tables.pipeline["outputs"] = {"result": {"kind": "json"}}
    tables.nodes["handler"] = {
        "backend": "TorchServeStreamingHandler" if streams else "TorchServeHandler",
        "model_dir": name,
        "executor": "process",
        **({} if streams else {"max": int(options.get("batchSize", 1))}),
        **_workers(options),
    }


def _workers(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a node for the frontend's options of an archive."""
    keys: dict[str, Any] = {}
    if "responseTimeout" in options:  # TorchServe replaces a worker then
        keys["stuck_after"] = float(options["responseTimeout"])
    workers = options.get("maxWorkers", options.get("minWorkers"))
    if workers is not None:
        keys["instance_num"] = max(1, int(workers))
    if "maxBatchDelay" in options:
        keys["batching_timeout"] = float(options["maxBatchDelay"])
    if options.get("deviceType") == "cpu":
        keys["device"] = "cpu"
    elif options.get("deviceIds"):
        keys["device"] = ",".join(f"cuda:{device}" for device in options["deviceIds"])
    return keys


def _labels_text(labels: dict[str, str]) -> str:
    """Return a file of labels in the order of the classes; a class without one has its number."""
    classes = [int(index) for index in labels]
    lines = [labels.get(str(index), str(index)) for index in range(max(classes) + 1)]
    return "".join(f"{' '.join(line.split())}\n" for line in lines)
