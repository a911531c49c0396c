"""The number of a server's processes."""

from __future__ import annotations

import os

from penstock.backends.engines.processors import processors

from ..settings import Settings


def front_count(settings: Settings) -> int:
    """Return how many front processes there are; 1: there is one process and no other."""
    return processors() if settings.processes == "auto" else settings.processes


def is_supported() -> bool:
    """Return whether this system has what several processes need: Linux's sockets and memory."""
    return hasattr(os, "memfd_create")
