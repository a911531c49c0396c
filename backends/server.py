"""What the code of a backend may ask of the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Server(Protocol):
    """The server, as the objects of one backend instance use it."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a quick function of a module in the process of the server, and return its result."""
