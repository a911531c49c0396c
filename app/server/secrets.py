"""Keep keys from other users and from child processes: out of `ps`, /proc and the environment."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from penstock.backends.process.environment import SECRET_VARIABLES

from ..settings import SECRETS, Settings

logger = logging.getLogger("penstock.serve")

_OPTIONS = {f"--{name.replace('_', '-')}".encode() for name in SECRETS}


def hide_secrets(*, warns: bool = True) -> None:
    """Remove the secrets of the settings from this process's environment and command line.

    Call it once they have been read. Processes that are started later do not inherit them. Warns of
    secrets on the command line, which everyone could read until now, unless another process does.
    """
    for name in [name for name in os.environ if name.upper() in SECRET_VARIABLES]:
        del os.environ[name]
    # Linux shows what is at these addresses of our memory as /proc/PID/cmdline and environ. It is
    # written through a file, because a wrong address is then an error and no crash.
    with contextlib.suppress(OSError, ValueError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        arguments, arguments_end, variables, variables_end = map(int, fields[45:49])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(arguments)
            given = memory.read(arguments_end - arguments)
            for option, start, end in _secret_arguments(given):
                memory.seek(arguments + start)
                memory.write(b"*" * (end - start))
                if not warns:
                    continue
                logger.warning(
                    "%s on the command line shows the secret to all users of this machine: use "
                    "%s-file, or the environment variable PENSTOCK_%s",
                    option,
                    option,
                    option[2:].replace("-", "_").upper(),
                )
            memory.seek(variables)
            for start, end in _secret_variables(memory.read(variables_end - variables)):
                memory.seek(variables + start)
                memory.write(b"*" * (end - start))


def warn_of_loose_files(settings: Settings) -> None:
    """Warn of files with secrets that users other than their owner and group can read or change."""
    for name in SECRETS:
        path: Path | None = getattr(settings, f"{name}_file")
        if path is None:
            continue
        with contextlib.suppress(OSError):
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_IRWXO | stat.S_IWGRP):
                logger.warning(
                    "%s_file: other users can read or change %s (mode %04o): chmod 600 it",
                    name,
                    path,
                    stat.S_IMODE(mode),
                )


def _secret_arguments(given: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield the option of each secret among NUL-ended arguments, and the bytes it takes."""
    before = b""
    start = 0
    for argument in given.split(b"\0"):
        end = start + len(argument)
        option, equals, _ = argument.partition(b"=")
        if before in _OPTIONS:
            yield before.decode(), start, end
        elif equals and option in _OPTIONS:
            yield option.decode(), start + len(option) + 1, end
        before = argument
        start = end + 1


def _secret_variables(given: bytes) -> Iterator[tuple[int, int]]:
    """Yield the bytes that the value of each secret takes among NUL-ended variables."""
    start = 0
    for variable in given.split(b"\0"):
        end = start + len(variable)
        name, _, _ = variable.partition(b"=")
        if name.decode("latin-1").upper() in SECRET_VARIABLES:
            yield start + len(name) + 1, end
        start = end + 1
