"""Overrides that a load may bring along: a configuration, and with it an ONNX model's files.

The configuration has the shape of Triton's ModelConfig. It only sets bounds of a pipeline that the
repository has, and can name no backend and no path. That of a Triton model replaces its own
(`pipelines/triton/override.py`). Files make a Triton model of ONNX Runtime in a directory of its
own. So an override can't bring Python, TorchScript, `.pt2`, or name a file outside of that
directory.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from penstock.backends.errors import ConfigError, InvalidRequest, NotFound
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.triton.folders import ModelFolder, model_folder
from penstock.pipelines.triton.override import read_given, read_override
from penstock.pipelines.triton.read import served_versions
from penstock.pipelines.triton.reading import parse_json_config

from ...http.inputs.base64_text import decode_base64
from ...http.json_text import JsonLimits, kind_of, parse_json
from .declared_tensors import check_tensors
from .model import Model
from .model_config import ACCEPTED_KEYS, KEYS_ACCEPTED_EMPTY, configure

FILE_PARAMETER = re.compile(r"file:(\d{1,9})/([A-Za-z0-9_][A-Za-z0-9_.\-]{0,99})")
MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
ONNX_BACKENDS = ("onnxruntime", "onnxruntime_onnx", "penstock", "")
"""The values that `backend` and `platform` may have."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class FilesConfig(PipelineConfig):
    """A pipeline whose files lie in a temporary directory.

    The repository removes the directory (`release`) once no pipeline of this configuration serves
    or loads. Not earlier: an executor that is restarted reads its model again, and so does a
    pipeline that replaces another one of the same configuration. Without a repository it goes when
    nothing refers to the configuration any more, or the process ends.
    """

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)

    def release(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Override:
    """A load's configuration and files for the model `name`.

    `files` holds base64 texts, or bytes as gRPC has them, by version and file name.
    """

    name: str
    config: Mapping[str, Any]
    files: Mapping[tuple[int, str], str | bytes]

    @classmethod
    def read(cls, name: str, parameters: Mapping[str, Any], limits: JsonLimits) -> Self:
        """Read the parameters of a load request.

        `limits` bounds the configuration's JSON. Raises `InvalidRequest` for
        parameters that are not valid or not allowed.
        """
        files: dict[tuple[int, str], str | bytes] = {}
        for key, value in parameters.items():
            if key == "config":
                continue
            match = FILE_PARAMETER.fullmatch(key)
            if match is None:
                expected = (
                    "files are 'file:<version>/<name>'"
                    if key.startswith("file:")
                    else "expected 'config' and 'file:<version>/<name>'"
                )
                raise InvalidRequest(
                    f"failed to load '{name}', unexpected parameter '{key[:100]}': {expected}"
                )
            if not isinstance(value, (str, bytes)):
                raise InvalidRequest(
                    f"failed to load '{name}', '{key}' is a JSON {kind_of(value)}, expected base64"
                )
            files[int(match[1]), match[2]] = value
        text = parameters.get("config")
        if text is None:
            raise InvalidRequest(
                f"failed to load '{name}', load parameter 'config' must be specified for model "
                "with override files"
            )
        if not isinstance(text, str):
            raise _invalid_config(name, f"expected a string, got a JSON {kind_of(text)}")
        try:
            config = parse_json(text.encode("utf-8", "backslashreplace"), limits)
        except InvalidRequest as error:
            raise _invalid_config(name, str(error)) from None
        if not isinstance(config, dict):
            raise _invalid_config(name, f"expected an object, got a JSON {kind_of(config)}")
        return cls(name, config, files)

    def of_model(self, folder: Path) -> list[PipelineConfig]:
        """Return the pipelines of the Triton model in `folder` with this configuration, which
        replaces its `config.pbtxt`.

        Takes long, so not for the event loop. Raises `InvalidRequest` and `ConfigError`.
        """
        written = self._written()
        found = model_folder(folder)
        if found is None:
            raise NotFound(self.name)
        with self._naming_mistakes():
            return read_override(written, found, self._file)

    def applied_to(self, config: PipelineConfig, reported: int) -> PipelineConfig:
        """Return the pipeline with the batches and instances that the configuration sets.

        `reported` is as in `configure`. Raises `InvalidRequest`.
        """
        self._check()
        return configure(config, self.config, reported)

    def check_tensors(self, pipeline: Pipeline) -> None:
        """Compare `input` and `output` with those of the pipeline that has loaded.

        Raises `InvalidRequest` if they differ. Those of a Triton model are what this declares.
        """
        if pipeline.config.model_config is None:
            check_tensors(self.config, Model(pipeline))

    def materialise(self) -> list[PipelineConfig]:
        """Write the files of the versions that the configuration chooses, and return a pipeline of
        the model of each.

        Takes long, so not for the event loop. Raises `InvalidRequest` and `ConfigError`; then no
        file stays.
        """
        if not MODEL_NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"failed to load '{self.name[:100]}', expected a name of letters, digits, '_', '.' "
                "and '-'"
            )
        written = self._written()
        for key in ("backend", "platform"):
            if getattr(written, key) not in ONNX_BACKENDS:
                raise _invalid_config(
                    self.name,
                    f"'{key}' can't be set here to anything but onnxruntime: overrides name no "
                    "other backend",
                )
        written.name, written.backend, written.platform = self.name, "onnxruntime", ""
        versions = sorted({version for version, _ in self.files})
        present = ModelFolder(Path(self.name), tuple(map(str, versions)), has_config=False)
        made: list[PipelineConfig] = []
        try:
            made.extend(
                self._materialised(written, int(version))
                for version in served_versions(written, present)
            )
        except BaseException:
            for config in made:
                config.release()
            raise
        return made

    def _materialised(self, written: Any, version: int) -> FilesConfig:
        """Write the files of a version into a directory of its own."""
        model = written.default_model_filename or "model.onnx"
        if not model.endswith(".onnx") or (version, model) not in self.files:
            raise InvalidRequest(
                f"failed to load '{self.name}', expected its model as 'file:{version}/model.onnx', "
                "or under the name in 'default_model_filename': overrides bring ONNX models, and "
                "no Python, TorchScript, .pt2 or compiled engines"
            )
        contents = {
            name: self._decoded(version, name)
            for (of_version, name) in self.files
            if of_version == version
        }
        self._check_model(contents[model], contents)
        directory = Path(tempfile.mkdtemp(prefix="penstock-"))
        try:
            (directory / str(version)).mkdir()
            for name, content in contents.items():
                (directory / str(version) / name).write_bytes(content)
            folder = ModelFolder(directory, (str(version),), has_config=False)
            with self._naming_mistakes():
                config = read_given(written, folder, str(version), self._file)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        changed = {"source": "", "versions_folder": None, "version_policy": None}
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        return FilesConfig(**{**values, **changed})

    @property
    def _file(self) -> str:
        """The text that stands for a file's name in messages."""
        return f"configuration of {self.name}"

    def _written(self) -> Any:
        """Return the configuration as a ModelConfig. Raises `InvalidRequest`."""
        try:
            return parse_json_config(self.config)
        except ConfigError as error:
            raise _invalid_config(self.name, error.problems[0].message) from None

    @contextlib.contextmanager
    def _naming_mistakes(self) -> Iterator[None]:
        """Say that what is wrong with the configuration is in what the load brought along."""
        try:
            yield
        except ConfigError as error:
            if any(problem.file != self._file for problem in error.problems):
                raise
            listed = "; ".join(str(replace(problem, file="")) for problem in error.problems)
            raise _invalid_config(self.name, listed) from None

    def _check(self) -> None:
        for key, value in self.config.items():
            is_empty = value is None or value in ("", [], {})
            if key not in ACCEPTED_KEYS and not (is_empty and key in KEYS_ACCEPTED_EMPTY):
                raise _invalid_config(self.name, f"'{key[:100]}' can't be set here")
        if self.config.get("name") not in {None, "", self.name}:
            raise _invalid_config(self.name, f"'name' is not '{self.name}'")
        for key in ("backend", "platform"):
            if (backend := self.config.get(key)) is not None and backend not in ONNX_BACKENDS:
                raise _invalid_config(
                    self.name,
                    f"'{key}' can't be set here to anything but onnxruntime: overrides name no "
                    "other backend",
                )
        if self.config.get("default_model_filename"):
            raise _invalid_config(
                self.name, "'default_model_filename' can't be set here without the model's files"
            )

    def _decoded(self, version: int, name: str) -> bytes:
        content = self.files[version, name]
        if isinstance(content, bytes):
            return content
        try:
            return decode_base64(content)
        except ValueError as error:
            raise InvalidRequest(
                f"failed to load '{self.name}', 'file:{version}/{name}' is not valid base64: "
                f"{error}"
            ) from None

    def _check_model(self, content: bytes, files: Mapping[str, bytes]) -> None:
        """Raise `InvalidRequest` if the model keeps weights in a file outside of `files`.

        They would be read from wherever the model says.
        """
        import onnx

        try:
            model = onnx.ModelProto.FromString(content)
        except Exception:  # protobuf's
            raise InvalidRequest(
                f"failed to load '{self.name}', its model is not a valid ONNX file"
            ) from None
        for tensor in _tensors(model):
            for field in tensor.external_data:
                if field.key == "location" and field.value not in files:
                    raise InvalidRequest(
                        f"failed to load '{self.name}', its model keeps weights in a file that was "
                        "not given"
                    )


def _invalid_config(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"failed to load '{name}', Invalid config override: {problem}")


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of a protobuf message, in whatever graph, attribute or function."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for member in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield member
            else:
                yield from _tensors(member)
