"""Backends that change the keys of an item: Keep, Remove, Add, AddInt, Copy, Move, Result2Key.

All except Result2Key set `result` to `data`, so that the next member of a chain runs. Values are
passed on and never copied: two keys may hold the same array, which no backend changes in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError
from ..item import CONTROL_KEYS, Item
from ..params import Names
from .compose import Identity
from .control import run_child


def needed(item: Item, key: str, backend: Backend) -> Any:
    """Return the value of a key.

    Raises BackendError, with the key and the backend, if it is missing.
    """
    try:
        return item[key]
    except KeyError:
        keys = ", ".join(sorted(map(str, item))) or "nothing"
        raise BackendError(
            f"{type(backend).__name__} needs the key {key!r}, but the item only has {keys}"
        ) from None


def pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split each `a:b` at its first colon.

    Raises ValueError without a colon, or with nothing before it.
    """
    split = []
    for text in texts:
        left, colon, right = text.partition(":")
        if not colon or not left.strip():
            raise ValueError(f"expected a key, a colon and its value, as in a:b, found {text!r}")
        split.append((left.strip(), right))
    return split


def _leaves_data(keys: Iterable[str]) -> bool:
    """Return whether a change of these keys leaves `data` and its rows as they are."""
    return not {"data", "result", "request_size"}.intersection(keys)


def _set_once(keys: list[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key!r} is set twice")


def routes(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split each `from:to` into (from, to)."""
    return [(source, target.strip()) for source, target in pairs(texts)]


def _routes(texts: tuple[str, ...]) -> tuple[str, ...]:
    for source, target in routes(texts):
        if not target:
            raise ValueError(
                f"expected two keys with a colon between them, as in a:b, found {source + ':'!r}"
            )
        if ":" in target:
            raise ValueError(
                f"expected two keys with one colon between them, as in a:b, found "
                f"{source + ':' + target!r}"
            )
        if source == target:
            raise ValueError(f"{source!r} is routed to itself")
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
"""`from:to,from:to`, or a list of them."""


class _ListParams(Params):
    variadic: ClassVar[bool] = True


class KeepParams(_ListParams):
    keep: Keys = Field(description="the keys that stay")


class Keep(Backend):
    """`Keep[a,b]`: removes all keys except these. `result` is `data`.

    `data`, `error`, `context` and the keys that steer Penstock (`node_name`, `event` and so on)
    always stay.
    """

    parameters = KeepParams
    passes_data = True

    def init(self, params: KeepParams, context: Context) -> None:
        self._kept = {"data", "error", "context", *CONTROL_KEYS, *params.keep}

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            for key in [key for key in item if key not in self._kept]:
                del item[key]
            item["result"] = needed(item, "data", self)


class RemoveParams(_ListParams):
    remove: Keys = Field(
        description="the keys to remove; a key that the item doesn't have is not an error"
    )


class Remove(Backend):
    """`Remove[a,b]`: removes these keys. `result` is `data`, unless `result` is one of them.

    If `data` is removed, `result` is what it was.
    """

    parameters = RemoveParams

    def init(self, params: RemoveParams, context: Context) -> None:
        self._keys = params.remove
        self.passes_data = _leaves_data(params.remove)

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = needed(item, "data", self)
            for key in self._keys:
                item.pop(key, None)


class AddParams(_ListParams):
    add: Annotated[Keys, AfterValidator(_values)] = Field(
        description="key:text; everything after the first colon is the text"
    )


class Add(Backend):
    """`Add(a:x,b:y)`: sets keys to texts. `result` is `data`, unless it is one of the keys."""

    parameters: ClassVar[type[Params] | None] = AddParams

    def init(self, params: Any, context: Context) -> None:
        self._values: dict[str, Any] = dict(pairs(params.add))
        self.passes_data = _leaves_data(self._values)

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item.update(self._values)
            if "result" not in self._values:
                item["result"] = needed(item, "data", self)


class AddIntParams(_ListParams):
    add_int: Annotated[Keys, AfterValidator(_numbers)] = Field(description="key:number")


class AddInt(Add):
    """`AddInt(a:1,b:-2)`: sets keys to whole numbers.

    `result` is `data`, unless it is one of the keys.
    """

    parameters = AddIntParams

    def init(self, params: Any, context: Context) -> None:
        self._values = {key: int(number) for key, number in pairs(params.add_int)}
        self.passes_data = _leaves_data(self._values)


class CopyParams(_ListParams):
    # An alias: `copy` is a method of every pydantic model.
    routes: Routes = Field(alias="copy", description="from:to")


class Copy(Backend):
    """`Copy[a:b,c:d]`: copies a to b, then c to d. `result` is `data`, unless it is a target.

    An item without a source key fails.
    """

    parameters: ClassVar[type[Params] | None] = CopyParams

    def init(self, params: Any, context: Context) -> None:
        self._routes = routes(self.texts(params))
        self._answers = any(target == "result" for _, target in self._routes)
        self.passes_data = _leaves_data([target for _, target in self._routes])

    @staticmethod
    def texts(params: Any) -> tuple[str, ...]:
        """Return the `from:to` texts of the parameters."""
        texts: tuple[str, ...] = params.routes
        return texts

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            for source, target in self._routes:
                item[target] = needed(item, source, self)
            if not self._answers:
                item["result"] = needed(item, "data", self)


class MoveParams(_ListParams):
    move: Routes = Field(description="from:to")


class Move(Copy):
    """`Move[a:b,c:d]`: moves a to b, then c to d. `result` is `data`, unless it is a target.

    If `data` is moved away, `result` is what it was. An item without a source key fails.
    """

    parameters = MoveParams

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        if not _leaves_data([source for source, _ in self._routes]):
            self.passes_data = False

    @staticmethod
    def texts(params: Any) -> tuple[str, ...]:
        texts: tuple[str, ...] = params.move
        return texts

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            data = needed(item, "data", self)
            for source, target in self._routes:
                value = needed(item, source, self)
                del item[source]
                item[target] = value
            if not self._answers:
                item["result"] = item.get("data", data)


def _not_data_or_result(key: str) -> str:
    if key in ("data", "result"):
        raise ValueError(
            f"{key!r} holds the value that the item goes on with: expected another key"
        )
    return key


TargetKey = Annotated[Key, AfterValidator(_not_data_or_result)]


class Result2KeyParams(Params):
    key: TargetKey = Field("key", description="the key that gets the child's result")


class Result2Key(Backend):
    """`Result2Key(key)[A]`: puts A's result in the key and goes on with the `data` that came in.

    `data` and `result` are then that. Without a child, `data` itself goes to the key. An item that
    the child leaves without `result`, or with `error`, leaves without `result` too.
    """

    parameters: ClassVar[type[Params] | None] = Result2KeyParams
    child_count = (0, 1)
    shape_of_first_child = True
    passes_data = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return children[0] if children else BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        (self._child,) = self.children or (Identity(),)
        self.min, self.max = self._child.min, self._child.max
        self._source, self._target = self.ends(params)
        known = self._child.signature
        if known is not None and self._source == "data":
            self.signature = known._replace(outputs=None)

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        """Return the key that the child gets as `data`, and the key that gets its result."""
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
