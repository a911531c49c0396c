"""A user's own operators: functions and classes made into backends, and `Python[module:Class]` found and imported.

A user's class need not know Penstock: any class with `forward(batch)` will do; `init`, `min`, `max`, `close` are optional.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import BaseModel

from ..base import UNBOUNDED, Backend, Context, Params
from ..errors import ConfigError, InvalidInput, Problem
from ..item import Item
from ..suggestions import did_you_mean
from .composite import Logic

_loading = threading.RLock()
"""Held while a file of a user's is run."""


class FunctionBackend(Backend):
    """`result = function(data)`, item by item; an `InvalidInput` is that item's soft failure."""

    function: ClassVar[Callable[[Any], Any]]

    def forward(self, batch: list[Item]) -> None:
        function = type(self).function
        for item in batch:
            try:
                item["result"] = function(item["data"])
            except InvalidInput as error:
                item["error"] = error


class Wrapping(Backend):
    """A backend around an object of the user's class; `init` and `close` are the object's, where it has them."""

    wrapped: ClassVar[type[Any]]

    def __init__(self) -> None:
        self.object: Any = None

    def init(self, params: Any, context: Context) -> None:
        self.object = type(self).wrapped()
        init = getattr(self.object, "init", None)
        if init is not None:
            init(*(params, context)[: _positional(init)])

    def close(self) -> None:
        close = getattr(self.object, "close", None)
        self.object = None
        if close is not None:
            close()


class AdaptedBackend(Wrapping):
    """A class that is no `Backend` but has a `forward(batch)`."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.min = int(_value(self.object, "min", 1))
        self.max = int(_value(self.object, "max", UNBOUNDED))

    def forward(self, batch: list[Item]) -> None:
        self.object.forward(batch)


class AsyncFunction(Logic):
    """A user's `async def f(item, call)`, or async generator."""

    function: ClassVar[Callable[..., Any]]

    def init(self, params: Any, context: Context) -> None:
        self.run = type(self).function


class AsyncObject(Wrapping, Logic):
    """A user's class with an `async def forward(self, item, call)`, or async generator."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.run = self.object.forward


def adapt(name: str, found: Any) -> type[Backend]:
    """The backend that a user's class or function is. Raises TypeError where it is neither.

    A class without declared `parameters` gets every key of its node that no other member declares, as a dict.
    """
    if not callable(found):
        raise TypeError(f"backend {name!r}: expected a class or a function, found {found!r}")
    if isinstance(found, type) and _is_async(getattr(found, "forward", None)):
        return _logic(name, AsyncObject, found, found.forward, {"wrapped": found})  # type: ignore[attr-defined]
    if isinstance(found, type) and issubclass(found, Backend):
        declared = next(cls for cls in found.__mro__ if "parameters" in cls.__dict__)
        return _derive(found, found, {"parameters": None}) if declared is Backend else found
    if isinstance(found, type):
        forward = getattr(found, "forward", None)
        if not callable(forward):
            raise TypeError(
                f"backend {name!r}: the class {found.__name__} has no method forward(batch)"
            )
        _refuse_generator(name, forward)
        known = {
            key: int(value)
            for key in ("min", "max")
            if isinstance(value := getattr(found, key, None), int)
        }
        return _derive(
            AdaptedBackend, found, {"wrapped": found, "parameters": _declared_by(found), **known}
        )
    if _is_async(found):
        return _logic(name, AsyncFunction, found, found, {"function": staticmethod(found)})
    _refuse_generator(name, found)
    return _derive(FunctionBackend, found, {"function": staticmethod(found)})


def load(target: str, directory: Path) -> Any:
    """What `module:Class` or `file.py:Class` names; a file is looked for in `directory`, then in the working directory.

    Raises ConfigError. A file is imported under a private name, and `sys.path` stays as it is, so that two pipelines may each
    have their own `ops.py`.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise ConfigError([Problem(f"expected module:Class or file.py:Class, found {target!r}")])
    try:
        module = (
            _load_file(Context(directory=directory).resolve(place))
            if place.endswith(".py")
            else import_module(place)
        )
    except FileNotFoundError as error:
        raise ConfigError(
            [Problem(f"there is no file {error.filename or place!r} for Python[{target}]")]
        ) from error
    except Exception as error:
        raise ConfigError(
            [
                Problem(
                    f"importing {place!r} for Python[{target}] failed: {type(error).__name__}: {error}"
                )
            ]
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            [Problem(f"{place!r} has no {attribute!r}{did_you_mean(attribute, vars(module))}")]
        ) from None


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    stat = path.stat()
    version = f"{path}|{stat.st_mtime_ns}|{stat.st_size}"
    name = f"_penstock_{path.stem}_{sha256(version.encode()).hexdigest()[:12]}"
    with (
        _loading
    ):  # instances load at the same time: none may find a module that is still being run
        return sys.modules[name] if name in sys.modules else _run_file(name, path)


def _run_file(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = (
        module  # before it runs: dataclasses and pydantic look their module up there
    )
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _derive(base: type[Backend], named_after: Any, attributes: dict[str, Any]) -> type[Backend]:
    name = getattr(named_after, "__name__", type(named_after).__name__)
    module = getattr(named_after, "__module__", __name__)
    return type(
        name, (base,), {"__doc__": inspect.getdoc(named_after), "__module__": module, **attributes}
    )


def _logic(
    name: str, base: type[Logic], named_after: Any, function: Any, attributes: dict[str, Any]
) -> type[Backend]:
    names = list(inspect.signature(function).parameters)
    if len(names) - (named_after is not function) != 2:
        raise TypeError(
            f"backend {name!r}: expected (item, call), as in `async def forward(self, item, call)`; found {names}"
        )
    streams = inspect.isasyncgenfunction(function)
    return _derive(
        base,
        named_after,
        {"parameters": _declared_by(named_after), "streams": streams, **attributes},
    )


def _declared_by(found: Any) -> type[BaseModel] | None:
    parameters = getattr(found, "parameters", None)
    if parameters is Params and isinstance(found, type) and issubclass(found, Backend):
        return None  # Backend's own, which declares nothing
    return (
        parameters if isinstance(parameters, type) and issubclass(parameters, BaseModel) else None
    )


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _refuse_generator(name: str, function: Any) -> None:
    if inspect.isgeneratorfunction(function):
        raise TypeError(
            f"backend {name!r}: a generator would hold its executor while it waits for who reads it. Yield from "
            "`async def forward(self, item, call)`, which calls other nodes for the work"
        )


def _positional(function: Callable[..., Any]) -> int:
    """How many of (params, context) it takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return 2
    return min(
        2,
        sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters),
    )


def _value(found: Any, key: str, otherwise: int) -> Any:
    """An attribute, or a method without arguments as torchpipe's Python backends have it."""
    value = getattr(found, key, otherwise)
    return value() if callable(value) else value
