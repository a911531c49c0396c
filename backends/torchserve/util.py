"""Functions that handlers import from `ts.utils.util` and `ts.handler_utils`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackendError


class PredictionException(Exception):  # noqa: N818  TorchServe's name
    """An answer with an HTTP status of the handler's choice."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


def list_classes_from_module(
    module: ModuleType, parent_class: type[Any] | None = None
) -> list[type[Any]]:
    """Return the classes that a module defines itself, by name."""
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
        and (parent_class is None or issubclass(cls, parent_class))
    ]


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Read `index_to_name.json`: class → label, or → a list whose last element is the label.

    None if there is no such file. Raises ValueError for other content.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and isinstance(content.get("object_type_names"), list):
        content = {str(index): name for index, name in enumerate(content["object_type_names"])}
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected an object of "class": "label"')
    labels: dict[str, str] = {}
    for index, value in content.items():
        label: Any = value[-1] if isinstance(value, list) and value else value
        if not isinstance(label, str):
            raise ValueError(f"{path}: class {index}: expected a text or a list of texts")
        labels[str(index)] = label
    return labels


def map_class_to_label(
    probs: list[Any], mapping: dict[str, str] | None = None, lbl_classes: list[Any] | None = None
) -> list[dict[str, Any]]:
    """Return a dict of label → value for each row. Without a mapping labels are the classes."""
    classes = lbl_classes if lbl_classes is not None else [range(len(row)) for row in probs]
    return [
        {
            (str(index) if mapping is None else mapping[str(index)]): value
            for index, value in zip(row, values, strict=False)
        }
        for row, values in zip(classes, probs, strict=False)
    ]


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function itself: Penstock's traces have the times of each node."""
    return function


def import_class(class_name: str, module_prefix: str | None = None) -> Any:
    """Return a class by its dotted name."""
    module, _, name = class_name.rpartition(".")
    place = ".".join(part for part in (module_prefix, module) if part)
    return getattr(import_module(place), name)


def send_intermediate_predict_response(
    ret: Any, req_id_map: Any, message: Any, code: Any, context: Any
) -> None:
    """Send a part of each answer. Raises BackendError in a backend that answers once."""
    send = getattr(context, "send", None)
    if send is None:
        raise BackendError(
            "send_intermediate_predict_response: this backend answers a request once: expected "
            'backend = "TorchServeStreamingHandler"'
        )
    send(ret)
