"""Models in int8: those that are quantised already, and NNCF for the others."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base import Context
from ...errors import BackendError, ConfigError
from ...text import message_of
from ..onnx_session import config_error, external_files, load_model
from ..shapes import shape_text
from .library import core, without_telemetry
from .params import OpenvinoParams

logger = logging.getLogger("penstock.openvino")

MAX_CALIBRATION_RUNS = 300
"""NNCF's own default: more runs change the ranges little."""


CONVOLUTIONS = frozenset(
    f"{group}Convolution{direction}"
    for group in ("", "Group")
    for direction in ("", "BackpropData")
)
SAME_VALUES = frozenset(
    {"MaxPool", "Relu", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Pad", "StridedSlice"}
)
"""Operations whose outputs are values of their first input, or 0."""


def is_quantised(model: Any) -> bool:
    """Return whether a model has layers that compute in int8: QuantizeLinear of ONNX, or NNCF's."""
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def has_small_weights(model: Any) -> bool:
    """Return whether a convolution's weights are kept in fewer bits than it computes in: int8 or
    fp16, with steps that widen them.

    With more than one stream, OpenVINO (2026.4 is one) widens them wrongly, and its answers are
    other ones at each load. Where the convolution's input is quantised, it computes in int8 and
    widens nothing.
    """
    return any(
        node.get_type_name() in CONVOLUTIONS
        and node.input_value(1).get_node().get_type_name() != "Constant"
        and not _is_from(node.input_value(0).get_node(), "FakeQuantize")
        for node in model.get_ops()
    )


def with_whole_weights(model: Any) -> Any:
    """Return the model with its weights widened now, once for all runs."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


def _is_from(node: Any, kind: str) -> bool:
    """Return whether a node is of this kind, or only moves or selects values of one that is."""
    while node.get_type_name() in SAME_VALUES:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == kind)


def quantise(model: Any, params: OpenvinoParams, context: Context) -> Any:
    """Return the model quantised by NNCF, with the values of `calibration`.

    With the folder `model::cache`, it is kept there and read again. With `opens_only`, the values
    are read and the model stays as it is. Raises ConfigError without values, or for values that
    don't fit the model, and BackendError without NNCF.
    """
    if params.calibration is None:
        raise config_error(
            context,
            "precision",
            f"int8 needs a quantised model, and {params.model} is not one: set calibration = "
            '"values.npz" (an array for each input, by name, with values like those of requests), '
            "so that NNCF quantises it, or give a model that has QuantizeLinear or FakeQuantize",
        )
    feeds = list(_runs(model, params, context))
    if context.opens_only:
        return model
    kept = _kept(model, params, context, feeds)
    if kept is not None and kept.is_file():
        return core().read_model(kept)
    try:
        with without_telemetry():
            nncf = import_module("nncf")
    except ModuleNotFoundError as error:
        raise BackendError(
            "OpenvinoTensor: precision = int8 quantises models with NNCF, which is not installed "
            "here: pip install nncf, or give a model that is quantised already"
        ) from error
    started = time.monotonic()
    context.loading.text = "quantising"
    try:
        quantised = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
    except Exception as error:  # NNCF raises what its libraries raise
        reason = " ".join(message_of(error).split())[:500]
        raise BackendError(
            f"OpenvinoTensor: NNCF can't quantise {params.model}: {reason}"
        ) from error
    logger.info(
        "%s: OpenvinoTensor: quantised %s with %d runs of %s in %.0f s%s",
        context.node,
        params.model,
        len(feeds),
        params.calibration,
        time.monotonic() - started,
        "" if kept else '; model::cache = "folder" keeps it for the next start',
        extra={"pipeline": context.pipeline, "node": context.node},
    )
    if kept is not None:
        _keep(quantised, kept, context)
    return quantised


def weights_beside(path: Path) -> list[Path]:
    """Return the files beside a model that have its weights."""
    if path.suffix == ".xml":
        return [file for file in [path.with_suffix(".bin")] if file.is_file()]
    if path.suffix != ".onnx":
        return []
    try:
        return external_files(load_model(path), path.parent)
    except Exception:  # OpenVINO says what is wrong with the file
        return []


def calibration_files(params: OpenvinoParams, context: Context) -> list[Path]:
    """Return the files that `calibration` names: one, those of a folder, or none."""
    if params.calibration is None:
        return []
    path = context.resolve(params.calibration)
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def calibration_values(params: OpenvinoParams, context: Context) -> list[dict[str, NDArray[Any]]]:
    """Read the files of `calibration`: in each, an array for each input. Raises ConfigError."""
    files = calibration_files(params, context)
    if not files:
        path = context.resolve(params.calibration or "")
        raise config_error(context, "calibration", f"{path} has no .npz files")
    values = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                values.append(dict(arrays))
            _refuse_not_finite(values[-1], file, context)
        except ConfigError:
            raise
        except Exception as error:  # NumPy raises what zipfile, its parser and the system raise
            message = f"{file} can't be read as a .npz file: {type(error).__name__}: {error}"
            raise config_error(context, "calibration", message) from error
    return values


def _refuse_not_finite(values: dict[str, NDArray[Any]], file: Path, context: Context) -> None:
    for name, array in values.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"{file}: {name} has values that are not finite (NaN or infinite)"
            raise config_error(context, "calibration", message)


def _runs(
    model: Any, params: OpenvinoParams, context: Context
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values of each run: a row, or as many as the model fixes."""
    count = 0
    for values in calibration_values(params, context):
        ports = [(_name(port, values, context), port) for port in model.inputs]
        sizes = [port.get_partial_shape()[0] for _, port in ports if len(port.get_partial_shape())]
        rows = sizes[0].get_length() if sizes and sizes[0].is_static else 1
        total = min((len(values[name]) for name, _ in ports if values[name].ndim), default=1)
        for start in range(0, total - rows + 1, rows):
            if count == MAX_CALIBRATION_RUNS:
                return
            count += 1
            yield {
                name: np.ascontiguousarray(
                    values[name][start : start + rows],
                    port.get_element_type().to_dtype(),
                )
                for name, port in ports
            }
        if total < rows:
            message = f"the model takes {rows} rows at a time, found {total}"
            raise config_error(context, "calibration", message)


def _name(port: Any, values: dict[str, NDArray[Any]], context: Context) -> str:
    """Return the name that the values have for an input. Raises ConfigError."""
    names = sorted(port.get_names())
    name: str | None = next((name for name in names if name in values), None)
    if name is None:
        message = f"no array is named {' or '.join(names)}, found {', '.join(values) or 'none'}"
        raise config_error(context, "calibration", message)
    expected = port.get_partial_shape()
    sizes = [size.get_length() if size.is_static else None for size in expected]
    shape = values[name].shape
    if len(shape) != len(sizes) or any(
        size not in (None, found) for size, found in zip(sizes[1:], shape[1:], strict=True)
    ):
        message = f"{name}: expected shape {shape_text(sizes)}, found {shape_text(shape)}"
        raise config_error(context, "calibration", message)
    return name


def _kept(
    model: Any, params: OpenvinoParams, context: Context, feeds: list[dict[str, NDArray[Any]]]
) -> Path | None:
    """Return where the quantised model is kept: None without the folder `model::cache`."""
    if params.cache is None:
        return None
    folder = context.resolve(params.cache)
    if folder.suffix and not folder.is_dir():
        return None
    digest = hashlib.sha256(repr((params.mean, params.std, params.data_format)).encode())
    path = context.resolve(params.model)
    for file in (path, *weights_beside(path)):
        digest.update(file.read_bytes())
    for feed in feeds:
        for name, values in feed.items():
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(values.tobytes())
    return folder / f"{path.name.partition('.')[0]}-int8-{digest.hexdigest()[:16]}.xml"


def _keep(model: Any, path: Path, context: Context) -> None:
    import openvino

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The .xml appears last, when its weights are there. Another process may write it, too.
        draft = path.with_name(f".{os.getpid()}-{path.name}")
        openvino.save_model(model, draft, compress_to_fp16=False)
        draft.with_suffix(".bin").replace(path.with_suffix(".bin"))
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        logger.warning(
            "%s: OpenvinoTensor: the quantised model can't be kept at %s: %s",
            context.node,
            path,
            message_of(error),
            extra={"pipeline": context.pipeline, "node": context.node},
        )
