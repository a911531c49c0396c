"""Triton's messages, which its client brings along."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

messages: Any = service_pb2
"""protobuf makes the classes at import, so no type checker knows them."""
