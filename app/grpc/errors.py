"""Why the server can't serve by gRPC as its settings say."""

from __future__ import annotations


class GrpcError(Exception):
    """Raised when the server can't serve by gRPC as its settings say. The text says what to do."""
