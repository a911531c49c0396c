"""Backends that change which keys an item has: Keep, Remove, Add, AddInt, Copy, Move, Result2Key.

All but Result2Key answer with `result` = `data`, so that a chain goes on behind them. Values are passed on, never copied: two keys may
hold the same array, which no backend changes in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError
from ..item import CONTROL_KEYS, Item
from ..params import Names
from .compose import Identity
from .control import run_child


def needed(item: Item, key: str, backend: Backend) -> Any:
    """What the item has by this key. Raises BackendError that names key and backend."""
    try:
        return item[key]
    except KeyError:
        has = ", ".join(sorted(map(str, item))) or "nothing"
        raise BackendError(
            f"{type(backend).__name__} needs the key {key!r}, which the item does not have; it has {has}"
        ) from None


def pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """`a:b` in two, each; the first colon counts. Raises ValueError where there is none, or nothing before it."""
    found = []
    for text in texts:
        left, colon, right = text.partition(":")
        if not colon or not left.strip():
            raise ValueError(
                f"expected a key, a colon and what belongs to it, as in a:b, found {text!r}"
            )
        found.append((left.strip(), right))
    return found


def _set_once(keys: list[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key!r} is set twice")


def routes(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(from, to) of each."""
    return [(source, target.strip()) for source, target in pairs(texts)]


def _routes(texts: tuple[str, ...]) -> tuple[str, ...]:
    for source, target in routes(texts):
        if not target:
            raise ValueError(
                f"expected two keys with a colon between them, as in a:b, found {source + ':'!r}"
            )
        if source == target:
            raise ValueError(f"{source!r} would go to itself")
    _set_once([target for _, target in routes(texts)])
    return texts


def _values(texts: tuple[str, ...]) -> tuple[str, ...]:
    _set_once([key for key, _ in pairs(texts)])
    return texts


def _numbers(texts: tuple[str, ...]) -> tuple[str, ...]:
    for _, number in pairs(_values(texts)):
        int(number)
    return texts


Key = Annotated[str, Field(min_length=1)]
Keys = Annotated[Names, Field(min_length=1)]
Routes = Annotated[Keys, AfterValidator(_routes)]
"""`from:to,from:to`, or a list of such."""


class _ListParams(Params):
    variadic: ClassVar[bool] = True


class KeepParams(_ListParams):
    keep: Keys = Field(description="the keys that stay")


class Keep(Backend):
    """`Keep[a,b]`: of the item's keys only these stay, besides `data`, `error`, `context` and those that steer Penstock (`node_name`,
    `event` and so on). `result` is `data`.
    """

    parameters = KeepParams

    def init(self, params: KeepParams, context: Context) -> None:
        self._kept = {"data", "error", "context", *CONTROL_KEYS, *params.keep}

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            for key in [key for key in item if key not in self._kept]:
                del item[key]
            item["result"] = needed(item, "data", self)


class RemoveParams(_ListParams):
    remove: Keys = Field(description="the keys that go; one that is not there is no error")


class Remove(Backend):
    """`Remove[a,b]`: these keys go. `result` is `data` (what it was, if `data` goes), unless `result` is one of them."""

    parameters = RemoveParams

    def init(self, params: RemoveParams, context: Context) -> None:
        self._keys = params.remove

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = needed(item, "data", self)
            for key in self._keys:
                item.pop(key, None)


class AddParams(_ListParams):
    add: Annotated[Keys, AfterValidator(_values)] = Field(
        description="key:text; everything behind the first colon is the text"
    )


class Add(Backend):
    """`Add(a:x,b:y)`: sets keys to texts. `result` is `data`, unless `result` is one of the keys."""

    parameters: ClassVar[type[Params] | None] = AddParams

    def init(self, params: Any, context: Context) -> None:
        self._values: dict[str, Any] = dict(pairs(params.add))

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item.update(self._values)
            if "result" not in self._values:
                item["result"] = needed(item, "data", self)


class AddIntParams(_ListParams):
    add_int: Annotated[Keys, AfterValidator(_numbers)] = Field(description="key:number")


class AddInt(Add):
    """`AddInt(a:1,b:-2)`: sets keys to whole numbers. `result` is `data`, unless `result` is one of the keys."""

    parameters = AddIntParams

    def init(self, params: Any, context: Context) -> None:
        self._values = {key: int(number) for key, number in pairs(params.add_int)}


class CopyParams(_ListParams):
    routes: Routes = Field(
        alias="copy", description="from:to"
    )  # `copy` is a method of every pydantic model


class Copy(Backend):
    """`Copy[a:b,c:d]`: b is what a is, d what c is, in this order. `result` is `data`, unless `result` is a target.

    A source that the item does not have fails it.
    """

    parameters: ClassVar[type[Params] | None] = CopyParams

    def init(self, params: Any, context: Context) -> None:
        self._routes = routes(self.texts(params))
        self._answers = any(target == "result" for _, target in self._routes)

    @staticmethod
    def texts(params: Any) -> tuple[str, ...]:
        """The `from:to` of the parameters."""
        found: tuple[str, ...] = params.routes
        return found

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            for source, target in self._routes:
                item[target] = needed(item, source, self)
            if not self._answers:
                item["result"] = needed(item, "data", self)


class MoveParams(_ListParams):
    move: Routes = Field(description="from:to")


class Move(Copy):
    """`Move[a:b,c:d]`: b is what a was, d what c was, in this order, and a and c are gone. `result` is `data` (what it was, if `data`
    is gone), unless `result` is a target.

    A source that the item does not have fails it.
    """

    parameters = MoveParams

    @staticmethod
    def texts(params: Any) -> tuple[str, ...]:
        found: tuple[str, ...] = params.move
        return found

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            data = needed(item, "data", self)
            for source, target in self._routes:
                value = needed(item, source, self)
                del item[source]
                item[target] = value
            if not self._answers:
                item["result"] = item.get("data", data)


def _for_values(key: str) -> str:
    if key in ("data", "result"):
        raise ValueError(f"{key!r} is what the item goes on with: expected another key")
    return key


TargetKey = Annotated[Key, AfterValidator(_for_values)]


class Result2KeyParams(Params):
    key: TargetKey = Field("key", description="where the child's result goes")


class Result2Key(Backend):
    """`Result2Key(key)[A]`: what A makes of `data` goes to the key, and the item goes on with the `data` that it came with: `data` and
    `result` are that. Without a child, `data` itself goes to the key.

    An item that the child leaves without `result`, or with `error`, has no `result` behind it either.
    """

    parameters: ClassVar[type[Params] | None] = Result2KeyParams
    child_count = (0, 1)
    shape_of_first_child = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return children[0] if children else BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        (self._child,) = self.children or (Identity(),)
        self.min, self.max = self._child.min, self._child.max
        self._source, self._target = self.ends(params)

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        """The key whose value the child gets as `data`, and the key that its result goes to."""
        return "data", params.key

    def forward(self, batch: list[Item]) -> None:
        originals = [needed(item, "data", self) for item in batch]
        for item in batch:
            item["data"] = needed(item, self._source, self)
        run_child(self._child, batch)
        for item, original in zip(batch, originals, strict=True):
            item["data"] = original
            if "result" in item and "error" not in item:
                item[self._target] = item["result"]
                item["result"] = original
