"""Sequential with the filters between its members, torchpipe's wrappers, Identity and Empty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from pydantic import Field

from ..base import Backend, BatchRange, Context, Params, Signature
from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..expressions.filters import Status, find_filter
from ..item import Item
from ..text import repr_of


class Identity(Backend):
    """`result` is `data`."""

    parameters = Params
    passes_data = True
    keeps_size = True

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = item["data"]


class Empty(Backend):
    """Does nothing. The item stays without `result`, which ends a Sequential for it."""

    parameters = Params

    def forward(self, batch: list[Item]) -> None: ...


def chain_range(members: Iterable[BatchRange]) -> BatchRange:
    """Return the range of a chain: [1, 1] if every member has max 1, else the others' intersection.

    A member with max 1 is looped per item, so it sets no bound. Raises ConfigError if the
    intersection is empty.
    """
    batching = [member for member in members if member.max != 1]
    if not batching:
        return BatchRange(1, 1)
    common = BatchRange(
        max(member.min for member in batching), min(member.max for member in batching)
    )
    if common.min > common.max:
        ranges = ", ".join(map(str, batching))
        message = f"the members of the Sequential share no batch size: their ranges are {ranges}"
        raise ConfigError([Problem(message)])
    return common


def pieces(batch: list[Item], max_rows: int, *, evenly: bool = False) -> Iterator[list[Item]]:
    """Cut the batch, in order, into as few pieces as possible of at most `max_rows` rows each.

    Rows are the sum of `request_size`. All pieces except the last are full, or, with `evenly`, all
    are of about the same size (10 by 4: 4, 3, 3). An item with more rows than `max_rows` is a piece
    of its own.
    """
    left = sum([item.get("request_size", 1) for item in batch])
    piece: list[Item] = []
    size = goal = 0
    for item in batch:
        rows = item.get("request_size", 1)
        if piece and size + rows > goal:
            yield piece
            left -= size
            piece, size = [], 0
        if not piece:
            goal = -(-left // -(-left // max_rows)) if evenly else max_rows
        piece.append(item)
        size += rows
    if piece:
        yield piece


def blame(error: BaseException, member: str) -> None:
    """Note on the error which member raised it, for the message that the caller gets.

    A member that is noted already stays: it is the innermost.
    """
    with suppress(BaseException):  # an exception class of a user's may refuse attributes
        if not hasattr(error, "penstock_backend"):
            error.penstock_backend = member  # type: ignore[attr-defined]


def soften(item: Item, error: InvalidInput) -> None:
    """Turn an `InvalidInput` raised for this item alone into its soft failure.

    The other items of the batch need not run again.
    """
    item.pop("result", None)
    item["error"] = error


class Sequential(Backend):
    """Runs its members first to last; `result` becomes `data` in between. `S[A,B]` is short for it.

    An item that a member leaves without `result`, or with `error`, skips the rest of the chain. A
    member with a filter of its own, as in `S[A,(or)B]`, is different: its filter decides for every
    item that is still in the chain. Run runs the member. Skip passes it over. Break, SerialSkip and
    SubGraphSkip end the chain for this item, which stays as it is. Error fails the item.
    """

    parameters = Params
    in_front = True
    child_count = (1, None)
    shape_of_first_child = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return chain_range(children)

    def init(self, params: Any, context: Context) -> None:
        self.min, self.max = chain_range(
            BatchRange(child.min, child.max) for child in self.children
        )
        filters = self.child_filters or (None,) * len(self.children)
        first, last = self._signature_of_data(), self.children[-1].signature
        self.passes_data = not any(filters) and all(child.passes_data for child in self.children)
        if first is not None or last is not None:
            # Of the arrays that come in: nothing is known of them if no engine gets them unchanged.
            has_rows = first is not None and first.has_rows and (last is None or last.has_rows)
            self.signature = Signature.of(
                first and first.inputs,
                last and last.outputs,
                has_rows,
                first.batch_axes if first is not None else (),
            )
        self._members = [
            (
                child,
                child.forward,
                child.max if context.max is None or child.max == 1 else min(child.max, context.max),
                MemberFilter(name, type(child).__name__) if name is not None else None,
            )
            for child, name in zip(self.children, filters, strict=True)
        ]

    def _signature_of_data(self) -> Signature | None:
        """Return the signature of the member that gets the arrays as they come in, if that is sure.

        Members that pass them on may come before it, without a filter that could leave it out.
        """
        for child, name in zip(self.children, self.child_filters, strict=False):
            if name is not None and child is not self.children[0]:
                return None
            if child.signature is not None or not child.passes_data:
                return child.signature
        return None

    def forward(self, batch: list[Item]) -> None:
        given = batch
        chain = batch  # the items still in the chain; `batch`: those that the next member runs on
        first = True
        for child, run, most, member_filter in self._members:
            if first:
                first = False
            elif member_filter is None:
                chain = batch = [item for item in chain if "result" in item and "error" not in item]
                if not batch:
                    return
                for item in batch:
                    item["data"] = item.pop("result")
            else:
                chain, batch = member_filter.split(chain)
                if not batch:
                    continue
            try:
                if most != 1:
                    # Rows may have become more on the way here.
                    for piece in [batch] if batch is given else pieces(batch, most):
                        run(piece.copy())  # a member is free to change its list
                    continue
                for item in batch:
                    try:
                        run([item])
                    except InvalidInput as error:
                        soften(item, error)  # looped here, so the faulty item is known
            except InvalidInput as error:
                if len(batch) > 1:
                    blame(error, type(child).__name__)
                    raise
                soften(batch[0], error)  # it stays in the chain: a fallback may follow
            except BaseException as error:
                blame(error, type(child).__name__)
                raise


class MemberFilter:
    """The filter before a member of a Sequential."""

    def __init__(self, name: str, member: str) -> None:
        self.label = f"({name}){member}"  # as written in the expression
        self._name = name
        self._member = member
        self._filter = find_filter(name)

    def split(self, chain: list[Item]) -> tuple[list[Item], list[Item]]:
        """Return the items that stay in the chain, and those of them that the member runs on.

        Raises what the filter raises, and BackendError for Error and for an answer that isn't a
        `Status`.
        """
        staying: list[Item] = []
        running: list[Item] = []
        for item in chain:
            try:
                status = self._ask(item)
            except InvalidInput as error:
                soften(item, error)
                continue
            except BaseException as error:
                blame(error, self.label)
                raise
            if status is Status.RUN:
                # The result or error of an earlier member must not pass for this one's.
                item.pop("result", None)
                item.pop("error", None)
                running.append(item)
            if status is Status.RUN or status is Status.SKIP:
                staying.append(item)
        return staying, running

    def _ask(self, item: Item) -> Status:
        status = self._filter(item)
        if status is Status.ERROR:
            raise BackendError(f"the filter {self._name} before {self._member} returned Error")
        if not isinstance(status, Status):
            raise BackendError(
                f"the filter {self._name} before {self._member} returned {repr_of(status)}: "
                "expected a penstock.Status"
            )
        return status


class WrapperParams(Params):
    device_id: int | None = Field(
        None,
        ge=0,
        description="accepted from torchpipe's files, without effect: the executor has its device",
    )


class SyncTensor(Backend):
    """Runs its one child.

    Without a child `result` is `data`, as the last member of a Sequential needs.

    torchpipe needs it to create and synchronise a stream. Here the executor does that for every
    backend.
    """

    parameters = WrapperParams
    in_front = True
    child_count = (0, 1)
    shape_of_first_child = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return children[0] if children else BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        (child,) = self.children or (Identity(),)
        self.min, self.max, self.signature = child.min, child.max, child.signature
        self.passes_data = child.passes_data
        self._child = child
        self._run = child.forward

    def forward(self, batch: list[Item]) -> None:
        try:
            self._run(batch)
        except BaseException as error:
            blame(error, type(self._child).__name__)
            raise


class Torch(SyncTensor):
    """Runs its one child, as `SyncTensor` does."""

    child_count = (1, 1)
