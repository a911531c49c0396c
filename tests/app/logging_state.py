"""The state of logging, which `configure_logging` changes for a whole process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from penstock.app.log_settings import log_settings
from penstock.app.server.logs import CLIENT_CAUSED

NAMES = ("penstock", "penstock.access", "uvicorn.error", "asyncio", "grpc")


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Restore at the end what `configure_logging` has changed."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(list(each.handlers), each.propagate, each.level) for each in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(level)
        for name in CLIENT_CAUSED:
            logging.getLogger(name).filters.clear()
        log_settings.reset()
