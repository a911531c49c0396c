"""The contract of a backend: what it offers to the executor thread that runs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from .item import Item
from .loaded_files import LoadedFiles
from .server import Server
from .shared_files import SharedFiles

DataKind = Literal["", "file", "image", "tensor", "array", "scores", "value"]
"""What travels in `data` and `result`: the bytes of a file, an H×W×C image (NumPy), N×C×H×W pixels
(NumPy or torch), any array, an array of K scores, or a plain Python value.
"""

NumpyType = Literal[
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "string",
]
"""The dtypes that a file may name, in NumPy's words. `string` is for texts of any length."""

UNBOUNDED = 2**31 - 1
"""`max` of a backend without a bound of its own."""


class BatchRange(NamedTuple):
    """The batch sizes that one `forward` takes: the sum of the rows of its items."""

    min: int
    max: int

    def __str__(self) -> str:
        return f"[{self.min}, {'unbounded' if self.max == UNBOUNDED else self.max}]"


def _as_range(value: Any) -> Any:
    pieces = tuple(piece.strip() for piece in value.split(",")) if isinstance(value, str) else value
    if not isinstance(pieces, (list, tuple)) or len(pieces) != 2:
        raise ValueError('expected two numbers, min,max, as in "1,8"')
    return pieces


def _in_order(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("expected min,max with 1 <= min <= max")
    return value


RangeText = Annotated[tuple[int, int], BeforeValidator(_as_range), AfterValidator(_in_order)]
"""A batch range as written in a file: `"1,4"`, or `[1, 4]`."""


def _types_of(annotation: Any) -> Iterator[Any]:
    """Yield a type, and those that it is made of: `tuple[int, ...] | None` has int."""
    yield annotation
    for argument in get_args(annotation):
        yield from _types_of(argument)


def refuse_truth_for_number(annotation: Any, value: Any) -> None:
    """Raise ValueError for true and false where a number or a list of numbers is expected. pydantic
    takes them for 1 and 0.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, bool) for each in values):
        types = set(_types_of(annotation))
        if types & {int, float} and bool not in types:
            raise ValueError("input should be a number")


class Params(BaseModel):
    """Declared parameters of a backend: a pydantic model, validated when a file is loaded.

    A key that isn't a valid Python name (`model::cache`) is a field with that alias.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    variadic: ClassVar[bool] = False
    """Give all positional arguments to the first parameter, as one list: `Remove[k1,k2]`."""

    keyword_only: ClassVar[frozenset[str]] = frozenset({"force_range"})
    """Parameters that can't be given as a positional argument."""

    force_range: RangeText | None = Field(
        default=None,
        description="min,max: replaces the backend's batch range; as a key of the node, that of "
        "its engines (without an engine, that of the whole expression)",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_truth_for_number(cls.model_fields[info.field_name or ""].annotation, value)
        return value


class Loading:
    """The progress of an `init` that takes long, reported to the code that waits for the node.

    `init` sets `text` ("building 42 %"); other threads read it. `stop` tells `init` that no caller
    waits any more.
    """

    __slots__ = ("_on_stop", "_stopped", "text")

    def __init__(self) -> None:
        self.text = ""
        self._stopped = False
        self._on_stop: Callable[[], None] | None = None

    def stop(self) -> None:
        """Ask `init` to stop. Safe from any thread, and more than once."""
        self._stopped = True
        if self._on_stop is not None:
            self._on_stop()

    def on_stop(self, cancel: Callable[[], None] | None) -> None:
        """Register `cancel` to be called by `stop`, or call it now if `stop` came earlier.

        None removes it: there is nothing left to cancel.
        """
        self._on_stop = cancel
        if self._stopped and cancel is not None:
            cancel()


@dataclass(frozen=True, slots=True)
class Context:
    """The surroundings of a backend object, given to `init`.

    `instance` counts from 0 to `instances` - 1 within the node. `min` and `max` are the node's
    batch bounds for this instance (None: not given). `device` is the node's `cpu` or `cuda:0` ("":
    the engine chooses). An `init` that takes minutes reports its progress in `loading`.
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
    files: LoadedFiles = field(default_factory=LoadedFiles, compare=False, repr=False)
    opens_only: bool = False
    """`penstock check`: `init` opens and checks its files, and runs no model."""
    alone: bool = False
    """The backend has a child process to itself (`executor = "process"`)."""
    shared_files: SharedFiles | None = field(default=None, compare=False, repr=False)
    """Files in memory that the child processes of a node share. None: it has none, or one."""
    server: Server | None = field(default=None, compare=False, repr=False)
    """Calls the other models of the server, for a backend that `takes_server`. None: the backend is
    not served.
    """

    def resolve(self, path: str) -> Path:
        """Return the path of a file that a parameter names.

        It is relative to the pipeline's file, or else to the working directory.
        """
        resolved = self.directory / path
        return resolved if resolved.exists() or not Path(path).exists() else Path(path)

    def resolve_input(self, path: str) -> Path:
        """Return the path of a file that `init` reads, as `resolve` does.

        All instances of the node must read the same bytes, also one that loads again after a
        crash. Raises BackendError if the file has changed since the first of them read it.
        """
        resolved = self.resolve(path)
        if resolved.is_file():
            self.files.check(resolved)
        return resolved


class TensorPort(NamedTuple):
    """An input or output of an engine's model.

    `dtype` is NumPy's name, `bfloat16` or `string`. A -1 in `shape` stands for any size. An item
    may leave an `optional` input out. These come last, unless the file gives another order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False


class Signature(NamedTuple):
    """The arrays that an engine's model takes in `data` and gives in `result`, in their order.

    None: not known. `batched`: the first axis of every array is the batch, of any size.
    `batch_axes`: the batch axis of each input, if it is not the first of all, None for an input
    without a batch; inputs beyond have it first. With either, the node counts the rows of an item
    from its arrays, and sets its `request_size`. `kept`: other inputs, which a node that keeps
    states of sequences gives the model; their shapes are without the batch.
    """

    inputs: tuple[TensorPort, ...] | None
    outputs: tuple[TensorPort, ...] | None
    batched: bool
    batch_axes: tuple[int | None, ...] = ()
    kept: tuple[TensorPort, ...] = ()

    @classmethod
    def of(
        cls,
        inputs: tuple[TensorPort, ...] | None,
        outputs: tuple[TensorPort, ...] | None,
        batched: bool,
        axes: tuple[int | None, ...],
    ) -> Signature:
        """Describe a model whose inputs have their batch, if it is `batched`, on these axes."""
        elsewhere = batched and any(axis != 0 for axis in axes)
        return cls(inputs, outputs, batched and not elsewhere, axes if elsewhere else ())

    @property
    def has_rows(self) -> bool:
        """True if the rows of an item can be counted from its arrays."""
        return self.batched or bool(self.batch_axes)

    def batch_axis(self, position: int) -> int | None:
        """Return the batch axis of an input, None if it has no batch."""
        return self.batch_axes[position] if position < len(self.batch_axes) else 0

    def without_optional(self) -> Signature:
        """Describe the model with the inputs that it must have."""
        ports = self.inputs or ()
        return Signature.of(
            tuple(port for port in ports if not port.optional),
            self.outputs,
            self.has_rows,
            tuple(
                axis
                for axis, port in zip(self.batch_axes, ports, strict=False)
                if not port.optional
            ),
        )


class Backend:
    """An operator or engine.

    Everything except `__init__` runs on one executor thread, so nothing here needs a lock.

    `min` and `max` are class attributes if they are known before `init`. `init` may set them
    instead: an engine learns them from its model. The children of an expression are initialised
    before their parent, last to first.
    """

    parameters: ClassVar[type[Params] | None] = Params
    """Declared parameters.

    None: the backend takes every key of its node that no other member declares, as a dict.
    """

    extra: ClassVar[str] = ""
    """The extra of the distribution that `init` needs (`penstock-serve[torch]`: "torch"); "": none.

    `init` raises BackendError if it isn't installed.
    """

    shape_key: ClassVar[Callable[[Item], Hashable] | None] = None
    """Compute the key that all items of a batch must share. None: any items may share a batch.

    Called on the event loop for every arrival: keep it under a microsecond.
    """

    child_count: ClassVar[tuple[int, int | None]] = (0, 0)
    """The least and the greatest number of children in an expression (None: any number)."""

    shape_of_first_child: ClassVar[bool] = False
    """Group items by the `shape_key` of the first child.

    Set it if that child sees the items as they arrive.
    """

    takes_request_id: ClassVar[bool] = False
    """Items come with a key `request_id`: the id of their request, which logs and answers have.

    "" for a request from Python, whose item may bring a `request_id` of its own.
    """

    takes_traceparent: ClassVar[bool] = False
    """Items come with the keys `traceparent` and `tracestate`: the headers of W3C Trace Context for
    what the backend calls on behalf of the request.

    "" if the request is in no trace.
    """

    takes_request_facts: ClassVar[bool] = False
    """Items of requests of /v2 come with the key `request_facts`, a `RequestFacts`.

    The answer has the parameters that the backend sets in `response_parameters`, a dict.
    """

    takes_headers: ClassVar[bool] = False
    """Items of predict requests come with a key `headers`: a dict of the request's headers, with
    names in lower case.

    A body that is a form and came as bytes brings `form` too: its fields by name, each a tuple of
    its media type and its bytes. The keys are missing in items that came by another door, unless a
    call from Python brings them.
    """

    takes_server: ClassVar[bool] = False
    """`Context.server` is set, so that it may call other models while it runs."""

    blocks: ClassVar[str] = ""
    """Why it must not run on the event loop, as in "it runs a model"; "": it may.

    A node with such a backend can't have `executor = "loop"`.
    """

    sets_range: ClassVar[bool] = False
    """The parameters give the batch range.

    The `min` and `max` of the node are then for the engines inside it.
    """

    in_front: ClassVar[bool] = False
    """It may run in every front process (`serve --processes`) unless its node has `front = false`.

    Of a wrapper: it may if its children may. What it gives must not depend on the rest of a batch.
    """

    takes: ClassVar[DataKind] = ""
    """What `data` must be; "": anything, or it is not known."""

    gives: ClassVar[DataKind] = ""
    """What `result` is; "": it is not known."""

    min: int = 1
    max: int = UNBOUNDED
    children: tuple[Backend, ...] = ()
    child_filters: tuple[str | None, ...] = ()
    """The filter of each child, as in the expression. Only a Sequential's children have any."""

    signature: Signature | None = None
    """Set by the `init` of engines that know it, for clients that ask what a pipeline takes."""

    passes_data: bool = False
    """`result` is always the `data` that came in, unchanged.

    In a Sequential, the arrays that come to such a member come to the next one too: its signature
    says which axis is the batch.
    """

    keeps_size: ClassVar[bool] = False
    """An image stays as large as it is: `result` has the pixels of `data`, each in its place."""

    sample: Any = None
    """The `data` with which a node of Penstock's own operators is measured at load; None: any."""

    device: str = ""
    """The accelerator that `init` took (`cuda:0`); "": the CPU.

    The executors of one device share a group (docs/explanation/scheduling.md).
    """

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...] | None:
        """Return the keys besides `result` that it may set in an item. None: they are not known."""
        return None

    @property
    def undecided(self) -> bool:
        """True if the first items that could share a run decide whether items share any."""
        return any(child.undecided for child in self.children)

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        """Return the batch range as far as it is known when the file is loaded, before `init`."""
        return BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        """Load what is needed. `params` is an instance of `parameters` (a dict if that is None)."""

    def warm_up(self) -> None:
        """Run once at every batch size that differs in speed (engines).

        Called after `init`, before the node is ready.
        """
        for child in self.children:
            child.warm_up()

    def forward(self, batch: list[Item]) -> None:
        """Read `item["data"]` and set `item["result"]`, for each item.

        Set `item["error"]` to an `InvalidInput` instead if this one item can't be read (a soft
        failure). Raising fails the batch: the node then runs its items one by one, so that only the
        faulty ones fail.

        The batch may be smaller than `min` (padding is up to the backend) but never larger than
        `max`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def close(self) -> None:
        """Release what `init` took. Called on the same thread, also after a failed `init`."""
        for child in self.children:
            child.close()
