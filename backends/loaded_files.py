"""The files that a load has read: all of its instances must read the same bytes.

Instances load one after another, and one that died loads again days later. A model that was
replaced on disk meanwhile would answer beside the old one under the same version.

The first instance that reads a file hashes it, once per load. Keeping the bytes instead would take
the memory of each model twice, for ever. An instance that loads later compares the identity of the
file: device, inode, size and the two times of the last change. No program can set `ctime`, so equal
identities mean equal bytes, and loading again costs no read. If the identity differs, because the
file was copied, touched or linked, the hash decides.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BackendError

SETTLED_NANOSECONDS = 2_000_000_000
"""The kernel's clock for files is coarse: an identity proves nothing in the moments after a change.
"""


class FileRecord(NamedTuple):
    """A file as it was read. `identity` is None if the file had changed just before."""

    digest: bytes
    identity: tuple[int, ...] | None


class LoadedFiles:
    """The files of one node, by path. Safe from any thread; it can be sent to a child process."""

    def __init__(self, records: dict[Path, FileRecord] | None = None) -> None:
        self.records = records or {}
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return LoadedFiles, (dict(self.records),)

    def check(self, path: Path) -> None:
        """Remember the content of a file, or compare it with what was remembered.

        Raises BackendError if it has changed. A file that can't be read is left to its reader.
        """
        with self._lock:
            known = self.records.get(path)
            try:
                identity = _identity_of(path)
                if known is not None and known.identity is not None and known.identity == identity:
                    return
                record = FileRecord(_digest_of(path), identity)
            except OSError:
                return
            self._take(path, record)

    def verify(self) -> None:
        """Check all files again: an instance has read them since. Raises BackendError."""
        for path in list(self.records):
            self.check(path)

    def changed(self) -> list[Path]:
        """Return the files that hold other bytes now, or are gone."""
        return [path for path, record in list(self.records.items()) if _has_changed(path, record)]

    def adopt(self, records: dict[Path, FileRecord]) -> None:
        """Take over what a child process has read. Raises BackendError if it read other bytes."""
        with self._lock:
            for path, record in records.items():
                self._take(path, record)

    def _take(self, path: Path, record: FileRecord) -> None:
        known = self.records.get(path)
        if known is not None and known.digest != record.digest:
            raise BackendError(
                f"{path} has changed on disk since the pipeline was loaded: reload the pipeline"
            )
        self.records[path] = record


def _has_changed(path: Path, record: FileRecord) -> bool:
    try:
        identity = _identity_of(path)
        if identity is not None and identity == record.identity:
            return False
        return _digest_of(path) != record.digest
    except OSError:
        return True


def _identity_of(path: Path) -> tuple[int, ...] | None:
    stat = path.stat()
    if time.time_ns() - max(stat.st_ctime_ns, stat.st_mtime_ns) < SETTLED_NANOSECONDS:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _digest_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
