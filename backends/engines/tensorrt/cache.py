"""Kept engines: a file each, with a header that says what it was made from, so that it is never used for anything else.

A file is `MAGIC`, the header's length (4 bytes, big-endian), the header (JSON: `key`, and `size` and `sha256` of the plan) and the plan.
It is JSON and bytes only: reading one runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BackendError
from ..encryption import WrongKeyError, decrypt, encrypt, find_key, is_encrypted
from .library import log
from .progress import BuildCancelledError, Progress

MAGIC = b"PENSTOCK-ENGINE-1\n"
LONGEST_HEADER = 1 << 20
_LENGTH = 4


class UnusableError(Exception):
    """A kept engine that is not used; the message says why."""


class Kept(NamedTuple):
    plan: bytes
    built: bool
    """False: it was there."""


def default_directory() -> Path:
    """Where engines are kept when the file names no place: `$XDG_CACHE_HOME/penstock/engines`, or below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "penstock" / "engines"


def place_of(given: Path | None, model: Path, key: Mapping[str, Any]) -> Path:
    """The file for an engine: `model::cache` itself, or a file in that folder, named after the model and all that it is made from."""
    if given is not None and not given.is_dir() and given.suffix:
        if given.resolve() == model.resolve():
            raise BackendError(
                f"model::cache is {given}, the model itself: expected another file, or a folder"
            )
        return given
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return (given or default_directory()) / f"{model.name.partition('.')[0]}-{digest}.engine"


def load_or_build(
    path: Path,
    key: Mapping[str, Any],
    build: Callable[[], bytes],
    who: str,
    progress: Progress | None = None,
    *,
    ahead: bool = False,
) -> Kept:
    """The engine of `key`: what is kept at `path`, or what `build` makes, which is then kept there.

    Of several processes (or threads) one builds; the others wait for it, until `progress` is cancelled. What can't be used is built anew,
    and a line says why; so it is where nothing can be kept there, unless it is built `ahead`, only to be kept: BackendError then. A wrong
    key for an `.encrypted` one raises: the next build would hide the mistake.
    """
    if is_encrypted(path):
        find_key()
    try:
        return Kept(read(path, key), built=False)
    except (FileNotFoundError, UnusableError):
        pass  # whoever builds says so
    with ExitStack() as stack:
        try:
            _make_directory(path.parent)
            stack.enter_context(_locked(path, who, progress or Progress()))
        except OSError as error:
            if ahead:
                raise BackendError(
                    f"{who}: engines can't be kept in {path.parent}: {error.strerror}"
                ) from error
            log.warning(
                "%s: engines can't be kept in %s (%s): this one is built now and at every start",
                who,
                path.parent,
                error.strerror,
            )
            return Kept(build(), built=True)
        try:
            return Kept(read(path, key), built=False)
        except FileNotFoundError:
            log.info("%s: no engine is kept at %s yet", who, path)
        except UnusableError as reason:
            log.warning("%s: the engine kept at %s is built anew: %s", who, path, reason)
        plan = build()
        try:
            write(path, key, plan)
        except OSError as error:
            if ahead:
                raise BackendError(
                    f"{who}: the engine was built and can't be kept at {path}: {error.strerror}"
                ) from error
            log.warning("%s: the engine can't be kept at %s: %s", who, path, error.strerror)
        return Kept(plan, built=True)


def write(path: Path, key: Mapping[str, Any], plan: bytes) -> None:
    header = json.dumps(
        {"key": key, "size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    ).encode()
    data = b"".join((MAGIC, len(header).to_bytes(_LENGTH, "big"), header, plan))
    write_atomically(path, encrypt(data, find_key()) if is_encrypted(path) else data)


def read(path: Path, key: Mapping[str, Any]) -> bytes:
    """The plan. Raises FileNotFoundError, UnusableError with the reason, and WrongKeyError."""
    header, plan = open_engine(path)
    found = header["key"]
    for name, wanted in key.items():
        if found.get(name) != wanted:
            raise UnusableError(
                f"it was built for {name} = {_shown(found.get(name))}, and {_shown(wanted)} is wanted"
            )
    return plan


def open_engine(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and plan of a file of ours. Raises FileNotFoundError, UnusableError with the reason, and WrongKeyError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableError(f"it can't be read: {error.strerror}") from error
    if is_encrypted(path):
        try:
            data = decrypt(data, find_key(), str(path))
        except WrongKeyError:
            raise
        except BackendError as error:
            raise UnusableError(str(error)) from error
    return split(data)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and plan. Raises UnusableError."""
    if not data.startswith(MAGIC):
        raise UnusableError("it is not a file of Penstock's: its header is another")
    start = len(MAGIC) + _LENGTH
    length = int.from_bytes(data[len(MAGIC) : start], "big")
    if length > LONGEST_HEADER or len(data) < start + length:
        raise UnusableError("it is damaged: it ends within its header")
    try:
        header = json.loads(data[start : start + length])
        size, digest, key = header["size"], header["sha256"], header["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableError("it is damaged: its header can't be read") from error
    plan = data[start + length :]
    if not isinstance(key, dict) or len(plan) != size:
        raise UnusableError(f"it is damaged: it holds {len(plan)} bytes of an engine of {size}")
    if hashlib.sha256(plan).hexdigest() != digest:
        raise UnusableError("it is damaged: its content is not what was written")
    return header, plan


def write_atomically(path: Path, data: bytes) -> None:
    """All of it or nothing, readable by its owner only."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _make_directory(path: Path) -> None:
    """Missing folders are made for their owner only (`mkdir`'s mode is for the last one alone)."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _locked(path: Path, who: str, progress: Progress) -> Iterator[None]:
    """Only one holds it at a time, among processes and threads; the file says which process that is, for whoever waits. It stays:
    removing it would let two hold it. Raises BuildCancelledError.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two may build the same, and the last one's file stays
        yield
        return
    with (path.parent / f".{path.name}.lock").open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            whom = f"process {file.read(20).decode('ascii', 'replace') or 'unknown'}"
            log.info("%s: waits for %s, which has the lock of %s", who, whom, path)
            handle = os.dup(
                file.fileno()
            )  # for the thread that waits: the lock is held until both are closed

            def wait() -> None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                finally:
                    os.close(handle)

            if not progress.wait(whom, wait):
                raise BuildCancelledError(
                    f"{who}: cancelled, while it waited for {whom}, which has the lock of {path}"
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
