"""The beginning of a child process: signals, logs, and then its role."""

from __future__ import annotations

import marshal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from penstock.backends.errors import ConfigError
from penstock.pipelines.repository import Repository

from ..server.logs import configure_logging
from ..server.secrets import hide_secrets
from ..server.standard_streams import open_standard_streams
from ..settings import Settings
from .control import CONTROL_DESCRIPTOR, Control, role_of
from .signals import leave_signals_to_the_parent

MAX_REASON = 1024
MOST = 32
"""The most characters of a problem, and the most problems, that the parent is told."""


class NoParentError(Exception):
    """Raised in a process that no parent has started."""


def run_child(name: str, read: Callable[[], Repository], settings: Settings) -> int:
    """Run as a child of the parent process.

    `name`: its role, as the parent's command line has it. `read` reads the repository, for the
    model process. Returns the exit code. Raises `NoParentError`.
    """
    control = _control()
    leave_signals_to_the_parent()
    open_standard_streams()
    try:
        role = role_of(name)
    except ValueError as error:
        _tell(control, Control.FAILED, str(error))
        return 1
    log = configure_logging(
        settings.log_level,
        settings.log_format,
        max_bytes=settings.max_log_buffer,
        process=str(role),
    )
    log.take_standard_error()
    hide_secrets(warns=False)  # the parent does
    try:
        if role.number:
            from .front.process import serve_front

            return serve_front(role.number, settings, control, log)
        from .models.process import serve_models

        repository = read()
        _tell(control, Control.READ)
        return serve_models(repository, settings, control, log)
    except ConfigError as error:
        _tell(control, Control.PROBLEMS, [str(each)[:MAX_REASON] for each in error.problems[:MOST]])
        return 1
    finally:
        control.close()
        log.limit.tell()


def _tell(control: socket.socket, *message: Any) -> None:
    """Send a message before there is an event loop."""
    with suppress(OSError):  # the parent has gone
        control.send(marshal.dumps([message], 2))


def _control() -> socket.socket:
    """Return the control socket. No process that this one starts inherits it."""
    try:
        control = socket.socket(fileno=CONTROL_DESCRIPTOR)
        kind = control.type
    except OSError:
        raise NoParentError from None
    if control.family != socket.AF_UNIX or kind != socket.SOCK_SEQPACKET:
        control.detach()
        raise NoParentError
    control.set_inheritable(False)
    return control
