"""`Logger`: a model's lines in the server's log."""

from __future__ import annotations

import logging
from enum import IntEnum

from .strings import as_text

_logger = logging.getLogger("penstock.model")


class Level(IntEnum):
    """The levels of a line. VERBOSE lines are in the log if that has debug lines."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS = {
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
    Level.VERBOSE: logging.DEBUG,
}


class Logger:
    """Writes to the server's log. Its methods need no object: `pb_utils.Logger.log_info("…")`."""

    LogLevel = Level
    INFO = Level.INFO
    WARNING = Level.WARNING
    ERROR = Level.ERROR
    VERBOSE = Level.VERBOSE

    @staticmethod
    def log(message: str, level: Level = Level.INFO) -> None:
        """Write a line at a level."""
        _logger.log(_LEVELS[Level(level)], "%s", as_text(message, "Logger: message"), stacklevel=2)

    @staticmethod
    def log_info(message: str) -> None:
        """Write a line of level INFO."""
        Logger.log(message, Level.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write a line of level WARNING."""
        Logger.log(message, Level.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Write a line of level ERROR."""
        Logger.log(message, Level.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write a line for those who debug."""
        Logger.log(message, Level.VERBOSE)
