"""What the tables of a pipeline file may hold, as pydantic models, and how their errors become problems with a place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from penstock.backends.errors import Problem
from penstock.backends.params import Shapes, batch_sizes
from penstock.backends.suggestions import did_you_mean

Kind = Literal["image", "bytes", "text", "integer", "number", "boolean", "tensor", "json"]
NumpyType = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16", "string"
]  # fmt: skip
ProtocolType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"
]  # fmt: skip


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PortTable(_Table):
    """`[pipeline.inputs]` and `[pipeline.outputs]`: one entry an item's key."""

    kind: Kind = "json"
    dtype: NumpyType | ProtocolType | None = None
    shape: tuple[Annotated[int, Field(ge=-1)], ...] | None = None
    labels: str | None = None
    description: str = ""


class ExposedTable(_Table):
    """`[pipeline.expose.NODE]`: a node that may be called alone, as a model of its own."""

    inputs: dict[str, PortTable] | None = None
    outputs: dict[str, PortTable] = {}
    description: str = ""


class PipelineTable(_Table):
    """`[pipeline]`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")] | None = None
    version: Annotated[
        str,
        BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
        Field(pattern=r"^[\w.\-]+$"),
    ] = "1"
    description: str = ""
    inputs: dict[str, PortTable] | None = None
    outputs: dict[str, PortTable] = {}
    expose: dict[str, ExposedTable] = {}
    max_requests: int = Field(1024, ge=1)
    timeout: float = Field(30.0, gt=0)
    entry: str | None = None
    loop: bool = False
    max_rounds: int = Field(10_000, ge=1)


_shapes: TypeAdapter[str] = TypeAdapter(Shapes)


def _leading(choose: Callable[[list[int]], int]) -> BeforeValidator:
    """A node's own bound where the value is written for an engine: the batch size in `4x3x224x224`."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return choose(batch_sizes(_shapes.validate_python(value)))
        except ValidationError:
            return value

    return BeforeValidator(read)


Lowest = Annotated[int, _leading(min), Field(ge=1)]
Highest = Annotated[int, _leading(max), Field(ge=1)]


def _devices(value: Any) -> Any:
    """`"cuda:0,cuda:1"`, `"0,1"`, `1`, `"gpu"`: a GPU by its number, or the first; or `cpu`."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return value
    pieces = [piece.strip() for piece in value.split(",")]
    found = tuple(
        f"cuda:{piece}" if piece.isdecimal() else "cuda:0" if piece in {"gpu", "cuda"} else piece
        for piece in pieces
    )
    wrong = next((piece for piece in found if not re.fullmatch(r"cpu|cuda:\d+", piece)), None)
    if wrong is not None:
        raise ValueError(f"expected cpu, cuda:0 or the number of a GPU, found {wrong!r}")
    return found


Devices = Annotated[tuple[str, ...], BeforeValidator(_devices)]


class NodeTable(_Table):
    """The keys that a node itself understands; `min`, `max` and `instance_num` may differ between its `&` groups."""

    min: Lowest | None = None
    max: Highest | None = None
    instance_num: int = Field(1, ge=1, le=1024)  # each is a thread
    batching_timeout: float = Field(0.0, ge=0, allow_inf_nan=False)
    priority_levels: int = Field(0, ge=0)
    default_priority: int | None = Field(None, ge=0)
    retry: bool = True
    stuck_after: float = Field(60.0, gt=0)
    executor: Literal["thread", "process"] = "thread"
    device: Devices = ()


GROUP_KEYS = frozenset({"min", "max", "instance_num"})
"""Keys of the node itself that `&` may split."""
SHARED_KEYS = GROUP_KEYS | {"device"}
"""Keys of the node itself that reach a backend too, if it declares them."""
NODE_KEYS = frozenset(NodeTable.model_fields)
STRUCTURE_KEYS = frozenset({"backend", "next", "map", "filter", "borrow_from"})
"""Keys that say what a node is and where in the graph; no backend ever gets them."""


AnyTable = TypeVar("AnyTable", bound=_Table)


def validated(table: type[AnyTable], keys: Mapping[Any, Any]) -> tuple[AnyTable, list[Problem]]:
    """The table that keys make, with the default in place of each key that is wrong, so that it hides nothing else; and what is wrong."""
    try:
        return table.model_validate(keys), []
    except ValidationError as error:
        wrong = {str(found["loc"][0]) for found in error.errors(include_url=False)}
        problems = list(problems_of(error, table.model_fields))
        return table.model_validate(
            {key: value for key, value in keys.items() if str(key) not in wrong}
        ), problems


def problems_of(
    error: ValidationError, known: Mapping[str, Any] | None = None, subject: str = ""
) -> Iterator[Problem]:
    """What pydantic found, each with its key. `known` are the keys for suggestions, `subject` who needs what is missing."""
    for found in error.errors(include_url=False):
        key = ".".join(
            str(part)
            for part in found["loc"]
            if not str(part).startswith(("literal[", "function-", "constrained-"))
        )
        last = str(found["loc"][-1]) if found["loc"] else ""
        match found["type"]:
            case "missing":
                yield Problem(f"{subject or 'the table'} needs {last}, which is not given", key=key)
            case "extra_forbidden":
                tables = {
                    1: known or {},
                    3: ExposedTable.model_fields
                    if found["loc"][0] == "expose"
                    else PortTable.model_fields,
                }
                names = tables.get(len(found["loc"]), PortTable.model_fields)
                yield Problem(f"there is no key {last!r} here{did_you_mean(last, names)}", key=key)
            case _:
                message = found["msg"].removeprefix(
                    "Value error, "
                )  # what a validator of ours raised
                message = message[0].lower() + message[1:]
                yield Problem(f"found {found['input']!r}: {message}", key=key)
