"""What a backend is: the contract between an operator or engine and the executor thread that runs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .item import Item

UNBOUNDED = 2**31 - 1
"""`max` of a backend that has no bound of its own."""


class BatchRange(NamedTuple):
    """How much one `forward` may be given, as the sum of the items' `request_size`."""

    min: int
    max: int

    def __str__(self) -> str:
        return f"[{self.min}, {'unbounded' if self.max == UNBOUNDED else self.max}]"


def _as_range(value: Any) -> Any:
    pieces = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if not isinstance(pieces, (list, tuple)) or len(pieces) != 2:
        raise ValueError('expected two numbers, min,max, as in "1,8"')
    return pieces


def _in_order(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("expected min,max with 1 <= min <= max")
    return value


RangeText = Annotated[tuple[int, int], BeforeValidator(_as_range), AfterValidator(_in_order)]
"""A batch range as a file writes it: `"1,4"`, or `[1, 4]`."""


class Params(BaseModel):
    """Base of every backend's declared parameters: a pydantic model, validated at load.

    A key that is no Python name (`model::cache`) is a field with that alias.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    variadic: ClassVar[bool] = False
    """All positional arguments are one list, the first parameter's own: `Remove[k1,k2]`."""

    keyword_only: ClassVar[frozenset[str]] = frozenset({"force_range"})
    """Parameters that a positional argument never means."""

    force_range: RangeText | None = Field(
        None,
        description="min,max: the batch range instead of its own; as a node's key the engines' (without one: the whole expression's)",
    )


class Loading:
    """How far an `init` is that takes long, for whoever waits for the node: `text`, as in "building 42 %", is set by `init`, and read by
    other threads. `stop` says that nobody waits any more.
    """

    __slots__ = ("_on_stop", "_stopped", "text")

    def __init__(self) -> None:
        self.text = ""
        self._stopped = False
        self._on_stop: Callable[[], None] | None = None

    def stop(self) -> None:
        """From any thread; more than once does no harm."""
        self._stopped = True
        if self._on_stop is not None:
            self._on_stop()

    def on_stop(self, cancel: Callable[[], None] | None) -> None:
        """Have `cancel` called by `stop`, at once where that came before; None: there is nothing to be cancelled any more."""
        self._on_stop = cancel
        if self._stopped and cancel is not None:
            cancel()


@dataclass(frozen=True, slots=True)
class Context:
    """Where a backend object lives. Given to `init`.

    `instance` counts from 0 to `instances` - 1 over the node; `max` is the node's batch bound for this instance
    (None: not given), `min` likewise; `device` is `cpu` or `cuda:0`, where the node says so ("": the engine chooses). An `init` that
    takes minutes says in `loading` how far it is.
    """

    pipeline: str = ""
    node: str = ""
    directory: Path = field(default_factory=Path)
    instance: int = 0
    instances: int = 1
    min: int | None = None
    max: int | None = None
    device: str = ""
    loading: Loading = field(default_factory=Loading, compare=False, repr=False)

    def resolve(self, path: str) -> Path:
        """The file a parameter names: relative to the pipeline's file, then to the working directory."""
        beside = self.directory / path
        return beside if beside.exists() or not Path(path).exists() else Path(path)


class TensorPort(NamedTuple):
    """An input or output of an engine's model. `dtype`: NumPy's name, `bfloat16` or `string`; -1 in `shape`: any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Signature(NamedTuple):
    """What goes into `data` and comes out as `result`, where an engine has learned it from its model: arrays, in this order.

    None: not known. `batched`: the first axis of all is the batch, of any size.
    """

    inputs: tuple[TensorPort, ...] | None
    outputs: tuple[TensorPort, ...] | None
    batched: bool


class Backend:
    """An operator or engine. Everything but `__init__` runs on one executor thread, so nothing here needs a lock.

    `min` and `max` are class attributes where they are known before `init`, and may be set by `init`
    (an engine learns them from its model). Children, where the expression has any, are initialised
    before their parent, last to first.
    """

    parameters: ClassVar[type[Params] | None] = Params
    """Declared parameters; None: the backend takes every key of its node that no other member declares, as a dict."""

    extra: ClassVar[str] = ""
    """The extra of the distribution that `init` needs (`penstock-serve[torch]`: "torch"); it says so where that is not installed. "": none."""

    shape_key: ClassVar[Callable[[Item], Hashable] | None] = None
    """Items with different keys never share a batch. Called on the event loop at every arrival: keep it under a microsecond.
    None: any items may share one."""

    child_count: ClassVar[tuple[int, int | None]] = (0, 0)
    """How many children it takes in an expression: fewest and most (None: any number)."""

    shape_of_first_child: ClassVar[bool] = False
    """Its items are grouped by the first child's `shape_key`: of a backend whose first child sees the items as they came."""

    sets_range: ClassVar[bool] = False
    """Its parameters say its range: a node's own `min` and `max` are then those of the engines inside."""

    min: int = 1
    max: int = UNBOUNDED
    children: tuple[Backend, ...] = ()
    child_filters: tuple[str | None, ...] = ()
    """One a child, as the expression has them; only a Sequential's children may have any."""

    signature: Signature | None = None
    """Set by the `init` of engines that know it, for clients that ask what a pipeline takes."""

    device: str = ""
    """The accelerator that `init` took (`cuda:0`); "": the CPU. Executors of one device share a group (docs/explanation/scheduling.md)."""

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        """The range as far as it is known at load, before `init`."""
        return BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        """Load what is needed. `params` is an instance of `parameters` (a dict where that is None)."""

    def warm_up(self) -> None:
        """Run once at every batch size that differs in speed (engines); called after `init`, before the node is ready."""
        for child in self.children:
            child.warm_up()

    def forward(self, batch: list[Item]) -> None:
        """Read `item["data"]` and set `item["result"]`, for each item.

        Set `item["error"]` to an `InvalidInput` instead where this one item can't be read (a soft failure).
        Raising fails the batch; the node then runs its items one by one, so that only the guilty fail. The batch may be smaller than
        `min` (padding is the backend's business) and never above `max`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def close(self) -> None:
        """Release what `init` took. Called on the same thread, also after a failed `init`."""
        for child in self.children:
            child.close()
