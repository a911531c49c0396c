"""A model of OpenVINO, compiled once for all the instances that run it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...base import Context
from ...errors import BackendError
from ...params import why_no_file
from ...text import message_of
from ..accuracy import Accuracy, log_accuracy
from ..cores import may_pin
from ..encryption import is_encrypted
from ..onnx_session import config_error
from ..processors import processors, threads_per_instance
from ..sharing import shared, version_of
from .library import capabilities, core
from .params import OpenvinoParams
from .preprocessing import with_preprocessing
from .quantised import (
    calibration_files,
    has_small_weights,
    is_quantised,
    quantise,
    weights_beside,
    with_whole_weights,
)
from .session import passes_inputs_on
from .shape_rules import ShapeRules, has_open_sizes

logger = logging.getLogger("penstock.openvino")

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""`precision` -> the type that layers compute in, in OpenVINO's words. The layers of int8 that are
quantised compute in int8 whatever that is.
"""


class CompiledModel:
    """A compiled model, whose runs share its weights and its threads.

    `precision`: what it computes in (fp32, bf16, fp16, int8).
    """

    __slots__ = (
        "__weakref__",
        "_accuracy",
        "_has_reference",
        "_lock",
        "_notes",
        "_reference",
        "compiled",
        "passes_inputs_on",
        "precision",
        "shape_rules",
    )

    def __init__(
        self,
        compiled: Any,
        precision: str,
        reference: Any,
        notes: Sequence[tuple[int, str]],
        shape_rules: ShapeRules | None,
    ) -> None:
        """`reference` is the same model compiled in fp32; None if there is nothing to compare.
        `notes` are what is to be logged about its precision, with their levels. `shape_rules` is
        None if the model takes a single shape of items.
        """
        self.compiled = compiled
        self.shape_rules = shape_rules
        self.passes_inputs_on = passes_inputs_on(compiled)
        self.precision = precision
        self._has_reference = reference is not None
        self._reference = reference
        self._notes = notes
        self._accuracy: Accuracy | None = None
        self._lock = threading.Lock()

    def report(self, context: Context, measure: Callable[[Any], Accuracy | None]) -> None:
        """Log what the precision costs, once for each node. The first to ask measures it by
        `measure`, which takes the reference. The reference is freed then.
        """
        if context.instance or context.opens_only:
            return
        owner = f"{context.node}: OpenvinoTensor"
        for level, note in self._notes:
            logger.log(level, "%s: %s", owner, note, extra=extra_of(context))
        if not self._has_reference:
            return
        with self._lock:
            if self._reference is not None:
                self._accuracy, self._reference = measure(self._reference), None
        log_accuracy(
            logger, owner, context, self._accuracy, precision=self.precision, reference="fp32"
        )


class Threads(NamedTuple):
    """How the runs of a compiled model are divided: `streams` runs at a time, with `threads` in
    all.
    """

    streams: int
    threads: int


def threads_of(params: OpenvinoParams, context: Context) -> Threads:
    """Return a stream for each instance of this process, as long as there are threads for them."""
    here = 1 if context.alone else context.instances
    if params.threads is not None:
        return Threads(here, params.threads * here)
    threads = threads_per_instance(context.instances) * here
    threads = min(threads, processors())
    return Threads(min(here, threads), threads)


def compiled_model(params: OpenvinoParams, context: Context) -> CompiledModel:
    """Return the model of all instances of a node, and of nodes with the same file and options.

    The first caller compiles it. Raises BackendError, which names the path, and ConfigError.
    """
    library = core()
    path = context.resolve_input(params.model)
    if not path.is_file():
        raise BackendError(f"OpenvinoTensor: the model {path} {why_no_file(path)}")
    if is_encrypted(path):
        raise BackendError(
            f"OpenvinoTensor: the model {path} is encrypted, but it reads only plain files"
        )
    weights = weights_beside(path)
    for file in weights:
        context.files.check(file)
    precision = params.precision or "fp32"
    if precision not in PRECISIONS:
        message = f"found {precision!r}, expected one of {', '.join(PRECISIONS)}"
        raise config_error(context, "precision", message)
    options = {
        **_options(threads_of(params, context), _pins(params, context)),
        **_cache(params, context),
    }
    key = (
        "openvino",
        *(version_of(file) for file in (path, *weights, *calibration_files(params, context))),
        (precision, params.mean, params.std, params.data_format),
        tuple(options.items()),
    )

    def load() -> CompiledModel:
        try:
            model = library.read_model(path)
            _refuse_texts(model, path)
            model = with_preprocessing(model, params, context)
            return _compile(model, options, params, context)
        except RuntimeError as error:
            reason = " ".join(message_of(error).split())[:500]
            raise BackendError(
                f"OpenvinoTensor: the model {path} can't be loaded: {reason}"
            ) from error

    model: CompiledModel = shared(key, load)
    return model


def _refuse_texts(model: Any, path: Path) -> None:
    # The CPU plugin has no kernels for texts. Passed on, their memory is freed twice.
    for port in (*model.inputs, *model.outputs):
        if port.get_element_type().get_type_name() == "string":
            name = port.get_any_name() if port.get_names() else "a tensor"
            raise BackendError(
                f"OpenvinoTensor: the model {path}: {name} holds texts, and OpenVINO computes with "
                "numbers only: use OnnxTensor"
            )


def _compile(
    model: Any, options: dict[str, Any], params: OpenvinoParams, context: Context
) -> CompiledModel:
    library = core()
    reference = None
    precision = wanted = params.precision or "fp32"
    notes: list[tuple[int, str]] = []
    native = capabilities()
    quantised = is_quantised(model)
    if quantised:
        note = f"{params.model} is quantised already, and its quantised layers run in int8: their "
        note += "error against the model in fp32 is not known here"
        asked = params.precision not in (None, "int8")
        notes.append((logging.WARNING if asked else logging.INFO, note))
    if wanted == "int8":
        if "INT8" not in native:
            notes.append((logging.WARNING, "this processor does not compute int8 natively"))
        if not quantised:
            reference, model = model, quantise(model, params, context)
            quantised = True
    elif wanted != "fp32":
        if wanted.upper() in native:
            reference = model
        else:
            # OpenVINO would take another type without a word, such as bf16 for fp16, which has
            # three bits less.
            precision = "fp32"
            known = ", ".join(name for name in ("bf16", "fp16") if name.upper() in native)
            notes.append(
                (
                    logging.WARNING,
                    f"this processor does not compute {wanted} natively, so {params.model} runs in "
                    f"fp32; it has {known or 'no precision below fp32 but int8'}",
                )
            )
    if has_small_weights(model):
        if quantised:
            options = {**options, "NUM_STREAMS": 1}
            note = "its instances run one at a time: OpenVINO would give wrong answers side by side"
            notes.append((logging.INFO, f"{params.model} is quantised in part, so {note}"))
        else:
            model = with_whole_weights(model)
    if precision != "int8":
        # By default, OpenVINO also quantises what layers with weights in int8 are given.
        options = {**options, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = library.compile_model(
        model, "CPU", {**options, "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    )
    if context.opens_only or (context.alone and context.instance):
        reference = None  # another process measures, if any does
    if reference is not None:
        full = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": options["INFERENCE_NUM_THREADS"],
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,
        }
        reference = library.compile_model(reference, "CPU", full)
    rules = ShapeRules(model) if has_open_sizes(model) else None
    return CompiledModel(compiled, precision, reference, tuple(notes), rules)


def _options(threads: Threads, pins: bool) -> dict[str, Any]:
    # OpenVINO pins by default, and each compiled model takes the first processors: two of them,
    # or two processes, share one processor while the others are idle.
    return {
        "NUM_STREAMS": threads.streams,
        "INFERENCE_NUM_THREADS": threads.threads,
        "ENABLE_CPU_PINNING": pins,
    }


def _pins(params: OpenvinoParams, context: Context) -> bool:
    threads = params.threads or threads_per_instance(context.instances)
    return params.pin_cores and may_pin(context, threads, "OpenvinoTensor")


def _cache(params: OpenvinoParams, context: Context) -> dict[str, str]:
    """Return the option for `model::cache`, the folder of compiled models."""
    if params.cache is None:
        return {}
    folder = context.resolve(params.cache)
    if (folder.suffix or folder.exists()) and not folder.is_dir():
        if context.instance == 0:
            logger.warning(
                "%s: OpenvinoTensor: model::cache is the file %s: OpenVINO keeps compiled models "
                "in a folder, so %s is compiled at each start",
                context.node,
                folder,
                params.model,
                extra=extra_of(context),
            )
        return {}
    return {"CACHE_DIR": str(folder)}


def extra_of(context: Context) -> dict[str, str]:
    """Return the fields of a log line that say which node it is about."""
    return {"pipeline": context.pipeline, "node": context.node}
