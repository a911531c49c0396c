"""The package `ts`, for handlers that import from it on a machine without TorchServe."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from . import metrics, text, util
from .context import Context, RequestProcessor

VERSION = "0.12.0"
"""The last release of TorchServe, whose faces these are."""

_HELPERS: dict[str, dict[str, Any]] = {
    "ts.version": {"__version__": VERSION},
    "ts.context": {"Context": Context, "RequestProcessor": RequestProcessor},
    "ts.metrics.dimension": {"Dimension": metrics.Dimension},
    "ts.metrics.metric_type_enum": {"MetricTypes": metrics.MetricTypes},
    "ts.utils.util": {
        "PredictionException": util.PredictionException,
        "list_classes_from_module": util.list_classes_from_module,
        "load_label_mapping": util.load_label_mapping,
        "map_class_to_label": util.map_class_to_label,
    },
    "ts.handler_utils.timer": {"timed": util.timed},
    "ts.handler_utils.text_utils": {
        "get_tokenizer": lambda tokenizer=None, language="en": (
            text.tokens if tokenizer else str.split
        ),
        "ngrams_iterator": text.ngrams,
    },
    "ts.handler_utils.utils": {
        "import_class": util.import_class,
        "send_intermediate_predict_response": util.send_intermediate_predict_response,
    },
    "ts.protocol.otf_message_handler": {
        "send_intermediate_predict_response": util.send_intermediate_predict_response
    },
}

BUILT_IN = {
    "base_handler": "BaseHandler",
    "vision_handler": "VisionHandler",
    "image_classifier": "ImageClassifier",
    "image_segmenter": "ImageSegmenter",
    "object_detector": "ObjectDetector",
    "text_handler": "TextHandler",
    "text_classifier": "TextClassifier",
}
"""The handlers that an archive may name in place of a file, and their classes in `handlers`."""


def built_in(name: str) -> Any:
    """Return the class of a handler of `BUILT_IN`. Imports torch, which other handlers may do
    without.
    """
    from . import handlers

    return getattr(handlers, BUILT_IN[name])


def _import_when_asked(module: ModuleType, handler: str) -> None:
    def find(name: str) -> Any:
        if name != BUILT_IN[handler]:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return built_in(handler)

    vars(module)["__getattr__"] = find


def provide() -> None:
    """Make `import ts` work: by the package, if it is installed, else by modules of Penstock's."""
    if "ts" in sys.modules or find_spec("ts") is not None:
        return
    made: dict[str, ModuleType] = {}
    handlers = {f"ts.torch_handler.{name}": name for name in BUILT_IN}
    for place in (*_HELPERS, *handlers):
        parts = place.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if name not in made:
                made[name] = ModuleType(name, "Penstock's stand-in for TorchServe's module.")
                made[name].__path__ = []
                # Another thread may look for the package that this one makes: without a spec,
                # `find_spec` raises.
                made[name].__spec__ = ModuleSpec(name, None, is_package=True)
                if length > 1:
                    setattr(made[".".join(parts[: length - 1])], parts[length - 1], made[name])
        if place in handlers:
            _import_when_asked(made[place], handlers[place])
        else:
            vars(made[place]).update(_HELPERS[place])
    vars(made["ts"])["__version__"] = VERSION
    sys.modules.update(made)
