"""What a load may bring along: a configuration in the shape of Triton's ModelConfig, and with it the files of an ONNX model.

By construction nothing else comes in: a configuration sets bounds of what the repository has, and names no backend and no path; files
make a pipeline of one OnnxTensor in a directory of their own. So no override can name Python, TorchScript, `.pt2`, or a file outside.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from penstock.backends.errors import InvalidRequest
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.config.load import build
from penstock.pipelines.config.source import Tables
from penstock.pipelines.pipeline import Pipeline

from ..json_text import kind_of, parse_json
from .model_config import IGNORED, KEYS, configure

FILE = re.compile(r"file:(\d{1,9})/([A-Za-z0-9_][A-Za-z0-9_.\-]{0,99})")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
ONNX = ("onnxruntime", "onnxruntime_onnx", "penstock", "")
"""What `backend` and `platform` may say."""


class Materialised(NamedTuple):
    """A pipeline whose files lie in a temporary directory."""

    config: PipelineConfig
    directory: Path

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def remove_after(self, pipeline: Pipeline) -> None:
        """Once nobody has the pipeline any more, or the process ends: an executor that is restarted reads its model again."""
        weakref.finalize(pipeline, shutil.rmtree, self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Override:
    name: str
    config: Mapping[str, Any]
    files: Mapping[tuple[int, str], str]
    """By version and name, in base64."""

    @classmethod
    def read(cls, name: str, parameters: Mapping[str, Any], depth: int) -> Self:
        """Raises `InvalidRequest` for what is no override, or none that is allowed."""
        files: dict[tuple[int, str], str] = {}
        for key, value in parameters.items():
            if key == "config":
                continue
            found = FILE.fullmatch(key)
            if found is None:
                what = (
                    "files are 'file:<version>/<name>'"
                    if key.startswith("file:")
                    else "expected 'config' and 'file:<version>/<name>'"
                )
                raise InvalidRequest(
                    f"failed to load '{name}', unexpected parameter '{key[:100]}': {what}"
                )
            if not isinstance(value, str):
                raise InvalidRequest(
                    f"failed to load '{name}', '{key}' is a JSON {kind_of(value)}, expected base64"
                )
            files[int(found[1]), found[2]] = value
        text = parameters.get("config")
        if text is None:
            raise InvalidRequest(
                f"failed to load '{name}', load parameter 'config' must be specified for model with override files"
            )
        if not isinstance(text, str):
            raise InvalidRequest(
                f"failed to load '{name}', Invalid config override: expected a string, got a JSON {kind_of(text)}"
            )
        try:
            config = parse_json(text.encode("utf-8", "backslashreplace"), depth)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"failed to load '{name}', Invalid config override: {error}"
            ) from None
        if not isinstance(config, dict):
            raise InvalidRequest(
                f"failed to load '{name}', Invalid config override: expected an object, got a JSON {kind_of(config)}"
            )
        override = cls(name, config, files)
        override._check()
        return override

    def applied_to(self, config: PipelineConfig, told: int) -> PipelineConfig:
        """The pipeline with what the configuration says of its batches and instances (`configure`). Raises `InvalidRequest`."""
        return configure(config, self.config, told)

    def materialise(self) -> Materialised:
        """Write the files of the newest version, and make a pipeline of its model. Takes long. Raises `InvalidRequest`, `ConfigError`."""
        version = max(version for version, _ in self.files)
        model = self.config.get("default_model_filename") or "model.onnx"
        if (
            not isinstance(model, str)
            or not model.endswith(".onnx")
            or (version, model) not in self.files
        ):
            raise InvalidRequest(
                f"failed to load '{self.name}', expected its model as 'file:{version}/model.onnx', or as 'default_model_filename' says: "
                "overrides bring ONNX models, and no Python, TorchScript, .pt2 or compiled engines"
            )
        contents = {
            name: self._decoded(each, name) for (each, name) in self.files if each == version
        }
        self._check_model(contents[model], contents.keys())
        directory = Path(tempfile.mkdtemp(prefix="penstock-"))
        try:
            for name, content in contents.items():
                (directory / name).write_bytes(content)
            node = {"backend": "OnnxTensor", "model": model}
            tables = Tables(
                self.name,
                {"model": node},
                pipeline={"version": str(version)},
                file=f"override of {self.name}",
                directory=directory,
            )
            config = replace(configure(build(tables, self.name), self.config), source="")
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Materialised(config, directory)

    def _check(self) -> None:
        for key, value in self.config.items():
            if key not in KEYS and (value or key not in IGNORED):
                raise self._invalid(f"'{key[:100]}' can't be set here")
        if self.config.get("name") not in {None, "", self.name}:
            raise self._invalid(f"'name' is not '{self.name}'")
        for key in ("backend", "platform"):
            if (said := self.config.get(key)) is not None and said not in ONNX:
                raise self._invalid(
                    f"'{key}' can't be set here, but to onnxruntime: overrides name no other backend"
                )
        if self.files and not NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"failed to load '{self.name[:100]}', a name has letters, digits, _ . and - only"
            )

    def _decoded(self, version: int, name: str) -> bytes:
        try:
            return base64.b64decode(self.files[version, name], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"failed to load '{self.name}', 'file:{version}/{name}' is no base64"
            ) from None

    def _check_model(self, content: bytes, files: Any) -> None:
        """Weights that lie outside would be read from wherever the model says."""
        import onnx

        try:
            model = onnx.ModelProto.FromString(content)
        except Exception:  # protobuf's
            raise InvalidRequest(f"failed to load '{self.name}', its model is no ONNX") from None
        for tensor in _tensors(model):
            for entry in tensor.external_data:
                if entry.key == "location" and entry.value not in files:
                    raise InvalidRequest(
                        f"failed to load '{self.name}', its model keeps weights in a file that was not given"
                    )

    def _invalid(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"failed to load '{self.name}', Invalid config override: {what}")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor of a model, in whatever graph, attribute or function."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield each
            else:
                yield from _tensors(each)
