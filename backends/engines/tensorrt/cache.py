"""Cached engines: one file each, whose header says what the engine was made from.

So an engine is never used for anything else. "Engine" is TensorRT's word for a compiled model, and
a plan is the bytes of one. A file holds `ENGINE_MAGIC`, the header's length (4
bytes, big-endian), the header (JSON with `key`, and the `size` in bytes and `sha256` of the plan),
and the plan. Reading a file parses JSON and bytes, and never runs code from it.
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

ENGINE_MAGIC = b"PENSTOCK-ENGINE-1\n"
"""The first bytes of a cached engine."""

MAX_HEADER_BYTES = 1 << 20
_LENGTH_BYTES = 4


class UnusableError(Exception):
    """Raised when a cached engine can't be used; the message says why."""


class FoundPlan(NamedTuple):
    """A plan, and whether it was built just now."""

    plan: bytes
    built: bool
    """False: it was read from a file."""


def default_directory() -> Path:
    """Return the folder in which engines are cached by default.

    It is `$XDG_CACHE_HOME/penstock/engines`, or `~/.cache/penstock/engines`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "penstock" / "engines"


def place_of(given: Path | None, model: Path, key: Mapping[str, Any]) -> Path:
    """Return the path of an engine's file.

    `given` is `model::cache`: a file, or a folder, in which the file is named after the model and a
    hash of `key`; None stands for the default folder. Raises BackendError if it is the model
    itself.
    """
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
    prefix: str,
    progress: Progress | None = None,
    *,
    ahead: bool = False,
) -> FoundPlan:
    """Return the engine of `key`: the one cached at `path`, or one that `build` makes.

    A new engine is then cached there. When several processes or threads want one engine, one builds
    it, and the others wait for it or until `progress` is cancelled. A cached engine that can't be
    used is rebuilt and the reason logged. If the folder can't be written, the engine is built and
    not cached, and the reason logged; with `ahead`, whose only purpose is to cache it, BackendError
    is raised instead. A wrong key for an `.encrypted` file raises WrongKeyError, because a rebuild
    would hide the mistake.
    """
    if is_encrypted(path):
        find_key()
    try:
        return FoundPlan(read(path, key), built=False)
    except (FileNotFoundError, UnusableError):
        pass  # the reason is logged below, by the process that builds
    with ExitStack() as stack:
        try:
            _make_directory(path.parent)
            stack.enter_context(_locked(path, prefix, progress or Progress()))
        except OSError as error:
            if ahead:
                raise BackendError(
                    f"{prefix}: engines can't be cached in {path.parent}: {error.strerror}"
                ) from error
            log.warning(
                "%s: engines can't be cached in %s (%s): the engine is built now, and again at "
                "every start",
                prefix,
                path.parent,
                error.strerror,
            )
            return FoundPlan(build(), built=True)
        try:
            return FoundPlan(read(path, key), built=False)
        except FileNotFoundError:
            log.info("%s: no engine is cached at %s yet", prefix, path)
        except UnusableError as reason:
            log.warning("%s: the engine cached at %s is rebuilt: %s", prefix, path, reason)
        plan = build()
        try:
            write(path, key, plan)
        except OSError as error:
            if ahead:
                raise BackendError(
                    f"{prefix}: the engine was built, but can't be cached at {path}: "
                    f"{error.strerror}"
                ) from error
            log.warning("%s: the engine can't be cached at %s: %s", prefix, path, error.strerror)
        return FoundPlan(plan, built=True)


def write(path: Path, key: Mapping[str, Any], plan: bytes) -> None:
    """Cache a plan, encrypted if the path is `.encrypted`.

    Raises OSError, and BackendError without an encryption key.
    """
    header = json.dumps(
        {"key": key, "size": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    ).encode()
    data = b"".join((ENGINE_MAGIC, len(header).to_bytes(_LENGTH_BYTES, "big"), header, plan))
    write_atomically(path, encrypt(data, find_key()) if is_encrypted(path) else data)


def read(path: Path, key: Mapping[str, Any]) -> bytes:
    """Return the plan cached at `path`.

    Raises FileNotFoundError, UnusableError with the reason if the file is damaged or has another
    key, and WrongKeyError.
    """
    header, plan = open_engine(path)
    cached_key = header["key"]
    for name, wanted in key.items():
        if cached_key.get(name) != wanted:
            raise UnusableError(
                f"it was built for {name} = {_shown(cached_key.get(name))}, but {_shown(wanted)} "
                "is wanted"
            )
    return plan


def open_engine(path: Path) -> tuple[dict[str, Any], bytes]:
    """Read a cached engine.

    Return its header and its plan. Raises FileNotFoundError, UnusableError with the reason, and
    WrongKeyError.
    """
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
    """Split a file's content into header and plan.

    Raises UnusableError if it is not a cached engine, or damaged.
    """
    if not data.startswith(ENGINE_MAGIC):
        raise UnusableError("it is not an engine that Penstock wrote: its first bytes are others")
    start = len(ENGINE_MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(data[len(ENGINE_MAGIC) : start], "big")
    if length > MAX_HEADER_BYTES or len(data) < start + length:
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
        raise UnusableError("it is damaged: its content has changed since it was written")
    return header, plan


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, readable by its owner only. Raises OSError."""
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
    """Make a folder and its missing parents, for their owner only.

    `mkdir(parents=True)` would give its mode only to the last folder.
    """
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def _locked(path: Path, prefix: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of an engine's file, which one thread of one process can hold at a time.

    Raises BuildCancelledError if `progress` is cancelled during the wait.

    The lock's own file names the process that holds it, for the messages of those that wait. It is
    never removed, since otherwise two could hold the lock at once.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two may build the same engine, and the later file stays
        yield
        return
    with (path.parent / f".{path.name}.lock").open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f"process {file.read(20).decode('ascii', 'replace') or 'unknown'}"
            log.info("%s: waits for %s, which has the lock of %s", prefix, holder, path)
            # The thread that waits gets a handle of its own: the lock is held until both are
            # closed.
            handle = os.dup(file.fileno())

            def wait() -> None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                finally:
                    os.close(handle)

            if not progress.wait(holder, wait):
                raise BuildCancelledError(
                    f"{prefix}: cancelled while it waited for {holder}, which has the lock of "
                    f"{path}"
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
