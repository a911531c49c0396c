"""Backends that wait for other nodes. They run on the event loop and hold no executor.

What they do is in pipelines/composites. Each is a node's whole expression: inside another backend
it would hold an executor while it waits, so that is an error at load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..base import Backend, Params
from ..params import Names, Reshape


class CompositeBackend(Backend):
    """Base class. Its node has no executor.

    `max`, `instance_num` and `batching_timeout` have no effect there.
    """


class JumpParams(Params):
    jump: str = Field(description="the node that the item enters: another root of this pipeline")


class Jump(CompositeBackend):
    """Runs the item through the graph that starts at `jump` and takes its result."""

    parameters = JumpParams


def _at_least_one(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("expected at least one key, as in result,score")
    return names


def _one_key(name: str) -> str:
    if not name.strip():
        raise ValueError(f"expected the key that is split, found {name!r}")
    if "," in name:
        raise ValueError(f"expected one key, found {name!r}: only one value can be split")
    return name


class MapReduceParams(JumpParams):
    split: Annotated[str, AfterValidator(_one_key)] = Field(
        "data",
        description="the key that is split: a list, a tuple, or an array (along its first axis)",
    )
    merge: Annotated[Names, AfterValidator(_at_least_one)] = Field(
        ("result",),
        description="the keys of the results that are collected into lists: result,score",
    )


class MapReduce(CompositeBackend):
    """Runs a copy of the item for each element of `split` through the graph that starts at `jump`.

    The keys of `merge` are collected from the results into lists, in the order of the elements.
    """

    parameters = MapReduceParams


class CopySplitParams(JumpParams):
    split_size: int = Field(ge=1, description="the most elements of a piece")


class CopySplit(CompositeBackend):
    """Cuts `data` into pieces of at most `split_size` and runs each through the graph at `jump`.

    `data` is a list, a tuple, or an array (cut along its first axis). Each piece travels in a copy
    of the item. The results are put together in order: lists and arrays are concatenated.
    """

    parameters = CopySplitParams


class Logic(CompositeBackend):
    """A user's `async def forward(item, call)`, made by `user.adapt`.

    It runs on the event loop and calls other nodes for the work.
    """

    parameters: ClassVar[type[Params] | None] = None
    streams: ClassVar[bool] = False
    """True for an async generator: each value that it yields is one result."""

    run: Callable[..., Any]
    """Set by `init`: takes the item and `call`, returns an awaitable or an async iterator."""


class Decoupled(Logic):
    """A model that answers a request with any number of responses, by `Server.respond`.

    Its node has instances, each a thread or a child process, in which `forward` gets one item at a
    time. The item has no result afterwards: the responses come when they like.
    """

    streams = True
    takes_server = True


class BlockingLogic(Logic):
    """A user's generator that is not async, made by `user.adapt`: it runs on a thread of its own.

    Its `run` takes the item, and returns the generator.
    """

    streams = True


class EnsembleStep(BaseModel):
    """One call of an ensemble: which model, and what its tensors are called in the ensemble."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    version: str = Field("", pattern=r"^[\w.\-]*$")
    inputs: dict[str, str] = Field(min_length=1)
    outputs: dict[str, str] = Field(min_length=1)


class EnsembleParams(Params):
    steps: tuple[EnsembleStep, ...] = Field(
        min_length=1,
        description="the calls: `model`, `version` (left out: the newest), and `inputs` and "
        "`outputs`, which map the names of its tensors to those of the ensemble",
    )
    reshape: dict[str, Reshape] = Field(
        {},
        description="the shapes that inputs and outputs of the ensemble have for its steps and for "
        "its callers, as engines have them",
    )


class Ensemble(Logic):
    """Calls other pipelines, each as soon as the tensors that it takes are there.

    The pipeline's declared inputs and outputs are tensors of the ensemble.
    """

    parameters = EnsembleParams
    takes_request_facts = True


class EnsembleDecoupled(Ensemble):
    """An `Ensemble` with a step that answers in parts: so does the ensemble.

    No file names it: an ensemble becomes one when it is joined with its models.
    """

    streams = True
