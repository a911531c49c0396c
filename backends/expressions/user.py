"""A user's functions and classes made into backends.

A user's class need not know Penstock: any class with `forward(batch)` will do. `init`, `min`, `max`
and `close` are optional.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from pydantic import BaseModel

from ..base import UNBOUNDED, Backend, Context, Params
from ..errors import InvalidInput
from ..item import Item
from .composite import BlockingLogic, Logic


class FunctionBackend(Backend):
    """`result = function(data)`, item by item. An `InvalidInput` is a soft failure of that item."""

    function: ClassVar[Callable[[Any], Any]]

    def forward(self, batch: list[Item]) -> None:
        function = type(self).function
        for item in batch:
            try:
                item["result"] = function(item["data"])
            except InvalidInput as error:
                item["error"] = error


class WrappingBackend(Backend):
    """A backend around an object of the user's class, whose `init` and `close` it calls."""

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


class AdaptedBackend(WrappingBackend):
    """A class that isn't a `Backend` but has a `forward(batch)`."""

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


class AsyncObject(WrappingBackend, Logic):
    """A user's class with an `async def forward(self, item, call)`, or async generator."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.run = self.object.forward


class GeneratorFunction(BlockingLogic):
    """A user's `def f(data)` with `yield`."""

    function: ClassVar[Callable[..., Any]]

    def init(self, params: Any, context: Context) -> None:
        function = type(self).function
        self.run = lambda item: function(item["data"])


class GeneratorObject(WrappingBackend, BlockingLogic):
    """A user's class with a `def forward(self, item)` with `yield`."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.run = self.object.forward


def adapt(name: str, target: Any) -> type[Backend]:
    """Make a backend of a user's class or function. Raises TypeError if it is neither.

    A class without declared `parameters` gets every key of its node that no other member declares,
    as a dict.
    """
    if not callable(target):
        raise TypeError(f"backend {name!r}: expected a class or a function, found {target!r}")
    if isinstance(target, type) and _is_async(getattr(target, "forward", None)):
        return _logic(name, AsyncObject, target, target.forward, {"wrapped": target})  # type: ignore[attr-defined]
    if isinstance(target, type) and inspect.isgeneratorfunction(getattr(target, "forward", None)):
        return _generator(name, target, target.forward)  # type: ignore[attr-defined]
    if isinstance(target, type) and issubclass(target, Backend):
        declared = next(cls for cls in target.__mro__ if "parameters" in cls.__dict__)
        return _derive(target, target, {"parameters": None}) if declared is Backend else target
    if isinstance(target, type):
        forward = getattr(target, "forward", None)
        if not callable(forward):
            raise TypeError(
                f"backend {name!r}: the class {target.__name__} has no method forward(batch)"
            )
        known = {
            key: int(value)
            for key in ("min", "max")
            if isinstance(value := getattr(target, key, None), int)
        }
        return _derive(
            AdaptedBackend,
            target,
            {
                "wrapped": target,
                "parameters": _declared_by(target),
                "takes_request_id": bool(getattr(target, "takes_request_id", False)),
                "takes_traceparent": bool(getattr(target, "takes_traceparent", False)),
                "takes_headers": bool(getattr(target, "takes_headers", False)),
                **known,
            },
        )
    if _is_async(target):
        return _logic(name, AsyncFunction, target, target, {"function": staticmethod(target)})
    if inspect.isgeneratorfunction(target):
        return _derive(GeneratorFunction, target, {"function": staticmethod(target)})
    return _derive(FunctionBackend, target, {"function": staticmethod(target)})


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
            f"backend {name!r}: expected the arguments (item, call), as in "
            f"`async def forward(self, item, call)`; found {names}"
        )
    streams = inspect.isasyncgenfunction(function)
    return _derive(
        base,
        named_after,
        {"parameters": _declared_by(named_after), "streams": streams, **attributes},
    )


def _declared_by(target: Any) -> type[BaseModel] | None:
    parameters = getattr(target, "parameters", None)
    if parameters is Params and isinstance(target, type) and issubclass(target, Backend):
        return None  # inherited from Backend, which declares nothing
    return (
        parameters if isinstance(parameters, type) and issubclass(parameters, BaseModel) else None
    )


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _generator(name: str, target: type[Any], forward: Any) -> type[Backend]:
    names = list(inspect.signature(forward).parameters)[1:]
    if len(names) != 1 or names == ["batch"]:
        raise TypeError(
            f"backend {name!r}: a forward that yields gets one item, as in `def forward(self, "
            f"item)`; found {names}"
        )
    attributes = {"wrapped": target, "parameters": _declared_by(target)}
    return _derive(GeneratorObject, target, attributes)


def _positional(function: Callable[..., Any]) -> int:
    """Count how many of (params, context) `function` takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    return min(
        2,
        sum(
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            for parameter in parameters
        ),
    )


def _value(target: Any, key: str, default: int) -> Any:
    """Read an attribute, or call a method without arguments, as torchpipe's backends have it."""
    value = getattr(target, key, default)
    return value() if callable(value) else value
