"""The tables that a pipeline file may hold, as pydantic models.

Also turns pydantic's errors into problems that name the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from penstock.backends.base import NumpyType, refuse_truth_for_number
from penstock.backends.errors import Problem
from penstock.backends.params import Shapes, batch_sizes
from penstock.backends.sequences.definition import (
    DEFAULT_IDLE_SECONDS,
    Control,
    ControlKind,
    SequenceConfig,
    State,
)
from penstock.backends.suggestions import did_you_mean

from .decoding import decoding_of
from .devices import ALL, ANY
from .presets import PRESETS
from .versions import DEFAULT_VERSION, VersionPolicy

Kind = Literal["image", "bytes", "text", "integer", "number", "boolean", "tensor", "json", "list"]


def _media_type(value: str) -> str:
    if re.fullmatch(r"\*/\*|[\w!#$&^.+\-]+/([\w!#$&^.+\-]+|\*)", value, re.ASCII) is None:
        raise ValueError("expected a media type without parameters: application/pdf, audio/*")
    return value.lower()


MediaType = Annotated[str, AfterValidator(_media_type)]
MEDIA_KINDS = frozenset({"image", "bytes", "text"})
"""The kinds whose inputs may list media types: the others are read from JSON."""
STREAM_KINDS = frozenset({"bytes", "text"})
"""The kinds of inputs that may be streams."""
ProtocolType = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


_NUMPY_BY_PROTOCOL: dict[str, str] = dict(
    zip(get_args(ProtocolType), get_args(NumpyType), strict=True)
)


def numpy_type(dtype: str | None) -> str | None:
    """Return NumPy's name of a type that may have the protocol's (`FP32`)."""
    return dtype if dtype is None else _NUMPY_BY_PROTOCOL.get(dtype, dtype)


_PROTOCOL_BY_NUMPY = {numpy: protocol for protocol, numpy in _NUMPY_BY_PROTOCOL.items()}


def protocol_type(dtype: str | None) -> str | None:
    """Return the protocol's name of one of NumPy's types; another type keeps its own."""
    return dtype if dtype is None else _PROTOCOL_BY_NUMPY.get(dtype, dtype)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_truth_for_number(cls.model_fields[info.field_name or ""].annotation, value)
        return value


class PortTable(_Table):
    """One declared value of `[pipeline.inputs]` or `[pipeline.outputs]`, by the item's key."""

    kind: Kind = "json"
    dtype: NumpyType | ProtocolType | None = None
    shape: tuple[Annotated[int, Field(ge=-1)], ...] | None = None
    labels: str | None = None
    description: str = ""
    items: PortTable | None = None
    json_schema: Any = Field(None, alias="schema")

    @model_validator(mode="after")
    def _schema_of_json(self) -> PortTable:
        if self.json_schema is not None and self.kind != "json":
            raise ValueError(
                f'only kind = "json" has a schema, and the kind is "{self.kind}" '
                '(the items of a list may have one: items = {kind = "json", schema = …})'
            )
        return self

    @model_validator(mode="after")
    def _items_of_a_list(self) -> PortTable:
        if self.items is not None and self.kind != "list":
            raise ValueError(f'only kind = "list" has items, and the kind is "{self.kind}"')
        return self


class InputTable(PortTable):
    """One declared value of `[pipeline.inputs]`."""

    optional: bool = False
    media_types: tuple[MediaType, ...] = ()
    stream: bool = False
    decode: Annotated[str, WithJsonSchema({"enum": list(PRESETS)})] | None = None

    @model_validator(mode="after")
    def _decode_images(self) -> InputTable:
        if self.decode is not None:
            if self.kind != "tensor":
                raise ValueError(f'only kind = "tensor" is decoded, and the kind is "{self.kind}"')
            decoding_of(self.decode, numpy_type(self.dtype), self.shape)
        return self

    @model_validator(mode="after")
    def _media_types_of_a_file(self) -> InputTable:
        if self.media_types and self.kind not in MEDIA_KINDS:
            raise ValueError(
                f'only kinds bytes, image and text have media_types, and the kind is "{self.kind}"'
            )
        return self

    @model_validator(mode="after")
    def _stream_of_chunks(self) -> InputTable:
        if self.stream and self.kind not in STREAM_KINDS:
            raise ValueError(
                f'only kind = "bytes" (chunks of bytes) and kind = "text" (chunks of str) can be '
                f'streamed, and the kind is "{self.kind}"'
            )
        return self


class ExposedTable(_Table):
    """`[pipeline.expose.NODE]`: a node that may be called by itself, as a model of its own."""

    inputs: dict[str, InputTable] | None = None
    outputs: dict[str, PortTable] | None = None
    batched: bool = True
    description: str = ""


class CacheTable(_Table):
    """`[pipeline.cache]`."""

    ttl: float | None = Field(None, gt=0, allow_inf_nan=False)


def _cache(value: Any) -> Any:
    """Read `true` (a cache), `false` (none) or a table."""
    if isinstance(value, bool) or value in ("true", "false"):
        return CacheTable(ttl=None) if value in (True, "true") else None
    if value is None or isinstance(value, dict):
        return value
    raise ValueError(f"expected true, false or a table, as {{ ttl = 60 }}, found {value!r}")


def _max_wait(value: Any) -> Any:
    """Read `"auto"` (0), `"none"` (None) or seconds."""
    if value in ("auto", "none"):
        return 0.0 if value == "auto" else None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"expected 'auto', 'none' or seconds above 0, found {value!r}")
    return seconds


class PipelineTable(_Table):
    """`[pipeline]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")] | None = None
    version: Annotated[
        str,
        BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
        Field(pattern=r"^[\w.\-]+$"),
        WithJsonSchema({"type": ["string", "integer"]}),
    ] = DEFAULT_VERSION
    version_policy: (
        Annotated[
            InstanceOf[VersionPolicy],
            BeforeValidator(VersionPolicy.read),
            WithJsonSchema({"type": ["string", "object"]}),
        ]
        | None
    ) = None
    description: str = ""
    inputs: dict[str, InputTable] | None = None
    outputs: dict[str, PortTable] | None = None
    batched: bool = True
    positional: bool = False
    expose: dict[str, ExposedTable] = {}
    max_requests: int = Field(1024, ge=1)
    timeout: float = Field(30.0, gt=0)
    max_wait: Annotated[
        float | None,
        BeforeValidator(_max_wait),
        WithJsonSchema({"anyOf": [{"enum": ["auto", "none"]}, {"type": "number"}]}),
    ] = 0.0
    queue_size: int | None = Field(None, ge=1)
    queue_timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    entry: str | None = None
    loop: bool = False
    max_rounds: int = Field(10_000, ge=1)
    cache: Annotated[
        CacheTable | None,
        BeforeValidator(_cache),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "boolean"},
                    {
                        "type": "object",
                        "properties": {"ttl": {"type": "number", "exclusiveMinimum": 0}},
                        "additionalProperties": False,
                    },
                ]
            }
        ),
    ] = None


_shapes: TypeAdapter[str] = TypeAdapter(Shapes)


def _batch_size(choose: Callable[[list[int]], int]) -> BeforeValidator:
    """Make a validator that takes the batch size out of a value for an engine: 4 of `4x3x224x224`.

    `choose` chooses one of several.
    """

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return choose(batch_sizes(_shapes.validate_python(value)))
        except ValidationError:
            return value

    return BeforeValidator(read)


Lowest = Annotated[int, _batch_size(min), Field(ge=1)]
Highest = Annotated[int, _batch_size(max), Field(ge=1)]


def _devices(value: Any) -> Any:
    """Read `"cuda:0,cuda:1"`, `"0,1"`, `1`, `"gpu"` (the first GPU), `"cpu"`, `"all"`, `"any"`."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    if value.strip() in {ALL, ANY}:
        return (value.strip(),)
    pieces = [piece.strip() for piece in value.split(",")]
    devices = tuple(
        f"cuda:{piece}" if piece.isdecimal() else "cuda:0" if piece in {"gpu", "cuda"} else piece
        for piece in pieces
    )
    wrong = next((device for device in devices if not re.fullmatch(r"cpu|cuda:\d+", device)), None)
    if wrong is not None:
        raise ValueError(f"expected cpu, cuda:0, the number of a GPU, all or any, found {wrong!r}")
    return devices


Devices = Annotated[tuple[str, ...], BeforeValidator(_devices)]


class ControlTable(_Table):
    """A control of `[NODE.sequence]`: an input of the model that says something about the step."""

    input: str = Field(min_length=1)
    dtype: NumpyType | ProtocolType | None = None
    false: float = 0
    true: float = 1


def _named_input(value: Any) -> Any:
    return {"input": value} if isinstance(value, str) else value


ControlInput = Annotated[
    ControlTable,
    BeforeValidator(_named_input),
    WithJsonSchema({"type": ["string", "object"]}),
]


class ControlsTable(_Table):
    """`controls` of `[NODE.sequence]`: the names of inputs, or tables."""

    start: ControlInput | None = None
    end: ControlInput | None = None
    ready: ControlInput | None = None
    id: ControlInput | None = None


class StateTable(_Table):
    """One element of `state` of `[NODE.sequence]`: an output that is an input of the next step."""

    input: str = Field(min_length=1)
    output: str = Field(min_length=1)
    dtype: NumpyType | ProtocolType | None = None
    shape: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    initial: str = Field("zeros", min_length=1)


class SequenceTable(_Table):
    """`[NODE.sequence]`: the node keeps states of sequences."""

    strategy: Literal["oldest", "direct"] = "oldest"
    max_sequences: int | None = Field(None, ge=1)
    max_waiting: int | None = Field(None, ge=0)
    idle_timeout: float = Field(DEFAULT_IDLE_SECONDS, gt=0, allow_inf_nan=False)
    controls: ControlsTable = ControlsTable()
    state: tuple[StateTable, ...] = ()

    def config(self) -> SequenceConfig:
        """Return the configuration that it describes."""
        kinds: tuple[ControlKind, ...] = ("start", "end", "ready", "id")
        tables: list[tuple[ControlKind, ControlTable | None]] = [
            (kind, getattr(self.controls, kind)) for kind in kinds
        ]
        return SequenceConfig(
            self.strategy,
            self.max_sequences,
            self.max_waiting,
            self.idle_timeout,
            tuple(
                Control(kind, table.input, numpy_type(table.dtype), table.false, table.true)
                for kind, table in tables
                if table is not None
            ),
            tuple(
                State(
                    table.input, table.output, numpy_type(table.dtype), table.shape, table.initial
                )
                for table in self.state
            ),
        )


class QueuePolicyTable(_Table):
    """One table of `[NODE.queue_policies]`."""

    max_queue_size: int | None = Field(None, ge=1)
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    on_timeout: Literal["reject", "delay"] = "reject"


MOST_PRIORITY_LEVELS = 1 << 16
"""Each level is a queue of its own, and each batch looks at all of them."""


MOST_INSTANCES = 1024
"""Each instance is a thread."""


class NodeTable(_Table):
    """The keys that a node itself understands.

    `min`, `max` and `instance_num` may differ between its `&` groups.
    """

    min: Lowest | None = None
    max: Highest | None = None
    instance_num: int = Field(1, ge=1, le=MOST_INSTANCES)
    batching_timeout: float = Field(0.0, ge=0, allow_inf_nan=False)
    priority_levels: int = Field(0, ge=0, le=MOST_PRIORITY_LEVELS)
    default_priority: int | None = Field(None, ge=0)
    combine: bool = True
    queue_policies: dict[str, QueuePolicyTable] = {}
    retry: bool = True
    stuck_after: float = Field(60.0, gt=0)
    executor: Literal["auto", "thread", "process", "loop"] = "auto"
    device: Devices = ()
    front: bool | None = None
    sequence: SequenceTable | None = None


GROUP_KEYS = frozenset({"min", "max", "instance_num"})
"""Keys of the node itself whose values `&` may split."""
SHARED_KEYS = GROUP_KEYS | {"device"}
"""Keys of the node itself that also reach a backend that declares them."""
NODE_KEYS = frozenset(NodeTable.model_fields)
TABLE_KEYS = frozenset({"sequence", "queue_policies"})
"""Keys of the node itself whose values are tables."""
PARAMETER_TABLES = frozenset({"batch_axis", "dtypes", "model_config", "reshape"})
"""Parameters of backends whose values are tables. No node may have such a name."""
STRUCTURE_KEYS = frozenset({"backend", "next", "map", "filter", "borrow_from"})
"""Keys that define a node and its place in the graph. No backend ever gets them."""


_SEQUENCE_KEYS: dict[str, Iterable[str]] = {
    "": SequenceTable.model_fields,
    "controls": (*ControlsTable.model_fields, *ControlTable.model_fields),
    "state": StateTable.model_fields,
}


AnyTable = TypeVar("AnyTable", bound=_Table)


def validated(table: type[AnyTable], keys: Mapping[Any, Any]) -> tuple[AnyTable, list[Problem]]:
    """Return the table that the keys make, and what is wrong with them.

    A key that is wrong has its default in the table, so that it hides no other problem.
    """
    try:
        return table.model_validate(keys), []
    except ValidationError as error:
        wrong = {str(details["loc"][0]) for details in error.errors(include_url=False)}
        problems = list(problems_of(error, table.model_fields))
        right = {key: value for key, value in keys.items() if str(key) not in wrong}
        return table.model_validate(right), problems


def problems_of(
    error: ValidationError, known: Mapping[str, Any] | None = None, subject: str = ""
) -> Iterator[Problem]:
    """Yield the errors of pydantic as problems, each with its key.

    `known`: the keys for suggestions. `subject`: what needs a key that is missing.
    """
    for details in error.errors(include_url=False):
        loc = details["loc"]
        key = ".".join(
            str(part)
            for part in loc
            if not str(part).startswith(("literal[", "function-", "constrained-"))
        )
        last = str(loc[-1]) if loc else ""
        match details["type"]:
            case "missing":
                yield Problem(f"{subject or 'the table'} needs {last}, which is not given", key=key)
            case "extra_forbidden":
                # The keys by depth: of the table itself, of a port or exposed node, of a port.
                ports = [field.alias or name for name, field in PortTable.model_fields.items()]
                tables: dict[int, Iterable[str]] = {
                    1: known or (),
                    3: ExposedTable.model_fields if loc[0] == "expose" else ports,
                }
                names = tables.get(len(loc), ports)
                if len(loc) > 1 and loc[0] == "sequence":
                    names = _SEQUENCE_KEYS.get(str(loc[1]) if len(loc) > 2 else "", ())
                yield Problem(f"there is no key {last!r} here{did_you_mean(last, names)}", key=key)
            case "string_pattern_mismatch" if loc in {("name",), ("version",)}:
                message = "expected letters, digits, _ . -"
                yield Problem(f"found {details['input']!r}: {message}", key=key)
            case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
                yield Problem(f"found {details['input']!r}: expected a whole number", key=key)
            case _:
                # Our own validators raise ValueError; pydantic says so before the message.
                message = details["msg"].removeprefix("Value error, ")
                message = message[0].lower() + message[1:]
                yield Problem(f"found {details['input']!r}: {message}", key=key)
