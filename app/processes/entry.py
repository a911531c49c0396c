"""The beginning of a child process: signals, logs, and then its role."""

from __future__ import annotations

import marshal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock.backends.errors import ConfigError
from penstock.pipelines.repository import Repository

from ..server.logs import configure_logging
from ..server.secrets import hide_secrets
from ..server.standard_streams import open_standard_streams
from ..settings import Settings
from .control import CONTROL_DESCRIPTOR, Control, role_of
from .signals import leave_signals_to_the_parent

MAX_REASON = 4096
"""The most characters of a reason that the parent is told."""


class NoParentError(Exception):
    """Raised in a process that no parent has started."""


def run_child(name: str, read: Callable[[], Repository], settings: Settings) -> int:
    """Run as a child of the parent process.

    `name`: its role, as the parent's command line has it. `read` reads the repository, for the
    model process. Returns the exit code. Raises `NoParentError`, and ValueError and `ConfigError`
    once the parent knows of them.
    """
    control = _control()
    leave_signals_to_the_parent()
    open_standard_streams()
    with _failures_told(control):
        role = role_of(name)
    log = configure_logging(
        settings.log_level,
        settings.log_format,
        max_bytes=settings.max_log_buffer,
        process=str(role),
    )
    log.take_standard_error()
    hide_secrets()
    try:
        if role.number:
            from .front.process import serve_front

            return serve_front(role.number, settings, control, log)
        from .models.process import serve_models

        with _failures_told(control):
            repository = read()
        return serve_models(repository, settings, control, log)
    finally:
        log.limit.tell()


@contextmanager
def _failures_told(control: socket.socket) -> Iterator[None]:
    """Tell the parent why this process can't start."""
    try:
        yield
    except (ConfigError, ValueError) as error:
        text = str(error)
        if isinstance(error, ConfigError):
            text = "; ".join(str(problem) for problem in error.problems)
        control.send(marshal.dumps([(Control.FAILED, text[:MAX_REASON])], 2))
        control.close()
        raise


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
