"""Reads the model and the sequence of a call by gRPC, and forwards it to Triton.

Messages pass as bytes: they are read only as far as it takes to know their model and sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from ..grpc.messages import messages
from ..grpc.wire import cut
from ..settings import Settings
from ..v2.call import ProtocolError
from ..v2.routes import ProtocolApp
from .comparisons import Comparisons, Held
from .facts import NO_FACTS, Facts, facts_of_message
from .model import ShadowedModel
from .options import MAX_FORWARDED, ShadowOptions
from .rpc_replay import RpcWay
from .switch import Switch

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a Triton that comes back is found soon
)

_DROPPED = frozenset({"user-agent", "te", "content-type", "host", "connection"})
"""Metadata that go with the client's connection. A name that begins with `grpc-` does, too."""


class RpcRules(NamedTuple):
    """The parts that all calls of a server share."""

    protocol: ProtocolApp
    options: ShadowOptions
    switch: Switch
    comparisons: Comparisons
    settings: Settings
    not_repeated: Callable[[str], None]


class RpcRequest(NamedTuple):
    """The model, the facts and the id of an infer request, from its message."""

    model: ShadowedModel
    facts: Facts
    identity: str


class RpcForwarding:
    """Forwards calls over one channel to Triton."""

    def __init__(self, rules: RpcRules) -> None:
        self.rules = rules
        self.infer: Any = None
        """The handler of ModelInfer of this server, once the server knows it."""
        self._channel: aio.Channel | None = None
        self._in_flight = 0

    def channel(self) -> aio.Channel:
        """Return the channel to Triton, which is made for the first call."""
        if self._channel is None:
            options = self.rules.options
            assert options.grpc is not None
            if options.grpc_tls:
                credentials = grpc.ssl_channel_credentials()
                self._channel = aio.secure_channel(options.grpc, credentials, options=_OPTIONS)
            else:
                self._channel = aio.insecure_channel(options.grpc, options=_OPTIONS)
        return self._channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def forward(self, method: str, message: bytes, context: Any) -> bytes:
        """Return Triton's answer to a call.

        Raises `AioRpcError`, and `ProtocolError` if too many calls wait for Triton already.
        """
        if self._in_flight >= MAX_FORWARDED:
            text = f"Exceeds maximum queue size: {MAX_FORWARDED} calls wait for Triton"
            raise ProtocolError(503, text)
        remaining = context.time_remaining()
        patience = self.rules.options.timeout
        timeout = patience if remaining is None else min(remaining, patience)
        multi = self.channel().unary_unary(method)
        call = multi(message, metadata=self.metadata(context), timeout=timeout)
        self._in_flight += 1
        try:
            answer: bytes = await call
        finally:
            self._in_flight -= 1
        trailing = passed_on(await call.trailing_metadata())
        if trailing:
            context.set_trailing_metadata(trailing)
        return answer

    def metadata(self, context: Any) -> tuple[tuple[str, Any], ...]:
        """Return the metadata of a call that Triton gets."""
        dropped = _DROPPED
        if self.rules.settings.api_key is not None:  # it is this server's, not Triton's
            dropped = dropped | {"authorization"}
        return tuple(
            (name, value)
            for name, value in context.invocation_metadata() or ()
            if name not in dropped and not name.startswith(("grpc-", ":"))
        )

    # what is known of infer requests

    def read(self, message: bytes) -> RpcRequest:
        """Read what has to be known of an infer request. Raises `InvalidRequest`."""
        parts = cut(message)
        model = self.rules.switch.model(parts.model)
        try:
            facts = facts_of_message(parts.text, messages.ModelInferRequest)
        except DecodeError:
            facts = NO_FACTS
        pipeline = self.rules.switch.pipeline(model.name)
        if pipeline is None or not pipeline.takes_sequences:
            facts = facts._replace(sequence=None)
        return RpcRequest(model, facts, parts.identity)

    def hold(self, call: RpcRequest, way: RpcWay, size: int) -> Held | None:
        """Hold a request to compare its answers; None if that is not possible."""
        rules, model, facts = self.rules, call.model, call.facts
        if rules.switch.pipeline(model.name) is None:
            served = rules.switch.is_served(model.name)
            model.skip("not_ready_here" if served else "not_served_here")
            return None
        held = rules.comparisons.begin(model, way)
        if held is None:
            rules.comparisons.cut(model, facts)
            return None
        if size > rules.settings.max_body:
            held.skip("too_large")
        elif facts.shared:
            held.skip("shared_memory")
        if not held.hold(size):
            rules.comparisons.cut(model, facts)
            return None
        held.facts = facts
        if facts.sequence is not None:
            held.take_turn()
        return held


def passed_on(metadata: Any) -> tuple[tuple[str, str], ...]:
    """Return trailing metadata that are passed on."""
    return tuple(
        (name, value)
        for name, value in metadata or ()
        if isinstance(value, str) and not name.startswith("grpc-")
    )
