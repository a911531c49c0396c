"""The baseline for gRPC: a bare grpc.aio server that answers each message with itself."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from penstock.backends.malloc import keep_memory


async def echo(message: bytes, context: Any) -> bytes:
    return message


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bare", {"Echo": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{sys.argv[sys.argv.index('--port') + 1]}")
    await server.start()
    await server.wait_for_termination()


keep_memory()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
