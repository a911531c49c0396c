"""Run a request that came by gRPC on this server, as if its client had sent it here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple, NoReturn

from grpc import aio

from ..grpc.http2.call import EOF
from ..grpc.messages import messages
from ..http.helper_thread import on_helper_thread
from .answers import Answer, Outputs, read_message
from .comparisons import COMPARE_OFF_LOOP_BYTES, Held, TooMuchError


class RawRpc(NamedTuple):
    """An answer by gRPC, as it came: the name of its status, and its serialised messages.

    `error`: the text of a status that is not OK. `is_stream`: they came by ModelStreamInfer.
    """

    code: str
    contents: list[bytes]
    error: str | None = None
    is_stream: bool = False

    def is_same(self, other: RawRpc) -> bool:
        """Return whether both are read in the same way."""
        return self == other


class TakenContext:
    """The context of a call whose message has been read: `read` returns it once more.

    `replays`: the call is another one, whose end the client does not see.
    """

    def __init__(self, context: Any, message: bytes, *, replays: bool = False) -> None:
        self.code, self.detail = "OK", ""
        self._context = context
        self._replays = replays
        self._metadata = context.invocation_metadata()
        self._peer: str = context.peer()
        self._message: bytes | None = message

    async def read(self) -> Any:
        message, self._message = self._message, None
        return EOF if message is None else message

    def again(self, message: bytes) -> TakenContext:
        """Return a context of the same call, for another message of it."""
        return TakenContext(self._context, message, replays=self._replays)

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        remaining: float | None = None if self._replays else self._context.time_remaining()
        return remaining

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        if not self._replays:
            self._context.set_trailing_metadata(metadata)

    async def abort(
        self, code: Any, detail: str = "", trailing: Iterable[tuple[str, str]] = ()
    ) -> NoReturn:
        self.code, self.detail = code.name, detail
        if not self._replays:
            await self._context.abort(code, detail, trailing)
        raise aio.AbortError


class RpcWay:
    """Runs a request that came by gRPC on this server, by ModelStreamInfer if `is_stream`."""

    __slots__ = ("_context", "_is_stream", "_own")

    def __init__(self, own: Any, context: TakenContext, *, is_stream: bool) -> None:
        """`own`: the handler of this server."""
        self._own = own
        self._context = context
        self._is_stream = is_stream

    async def run(self, held: Held) -> RawRpc:
        context = self._context
        contents: list[bytes] = []
        try:
            if not self._is_stream:
                contents.append(await self._own(None, context))
            else:
                answers = self._own(_messages_of(context), context)
                try:
                    async for content in answers:
                        if not held.hold(len(content)):
                            raise TooMuchError
                        contents.append(content)
                finally:
                    await answers.aclose()
        except aio.AbortError:
            return RawRpc(context.code, [], context.detail)
        return RawRpc("OK", contents, is_stream=self._is_stream)

    async def read(self, raw: RawRpc, held: Held) -> Answer:
        if raw.error is not None:
            return Answer(raw.code, [], raw.error)
        read = read_stream if raw.is_stream else read_unary
        if sum(map(len, raw.contents)) < COMPARE_OFF_LOOP_BYTES:
            return read(raw.contents)
        return await on_helper_thread(read, raw.contents)


async def _messages_of(context: TakenContext) -> AsyncIterator[bytes]:
    while (message := await context.read()) is not EOF:
        yield message


def read_unary(contents: list[bytes]) -> Answer:
    """Read a ModelInferResponse. Raises `InvalidRequest` and `DecodeError`."""
    return Answer("OK", [read_message(messages.ModelInferResponse.FromString(contents[0]))])


def read_stream(contents: list[bytes]) -> Answer:
    """Read the ModelStreamInferResponses of one request. Raises `InvalidRequest`."""
    parts: list[Outputs] = []
    for content in contents:
        response = messages.ModelStreamInferResponse.FromString(content)
        if response.error_message:
            return Answer("OK", [], response.error_message)
        if response.infer_response.outputs:  # else it only says that there are no more
            parts.append(read_message(response.infer_response))
    return Answer("OK", parts)
