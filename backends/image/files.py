"""Files that SaveMat and SaveTensor write, to look at while debugging."""

from __future__ import annotations

import logging
from pathlib import Path

from ..base import Context
from ..errors import BackendError

logger = logging.getLogger("penstock.backends.image")


class NumberedFiles:
    """New files in a directory, NODE_INSTANCE_NUMBER.extension. One that is there is never overwritten, and none is deleted."""

    def __init__(self, save_dir: str, context: Context, backend: str) -> None:
        """Raises BackendError where the directory is absent."""
        self.directory: Path = context.resolve(save_dir)
        self.backend = backend
        if not self.directory.is_dir():
            raise BackendError(
                f"{backend}: save_dir {self.directory} is no directory that exists: create it first"
            )
        self._prefix = f"{context.node or 'image'}_{context.instance}"
        self._written = 0
        logger.warning("%s: every image that passes is written to %s", backend, self.directory)

    def write(self, content: bytes, extension: str) -> None:
        """One file more. Raises BackendError where it can't be written."""
        try:
            self._write(content, extension)
        except OSError as error:
            raise BackendError(
                f"{self.backend}: can't write to {self.directory}: {error}"
            ) from error

    def _write(self, content: bytes, extension: str) -> None:
        while True:
            path = self.directory / f"{self._prefix}_{self._written:06}{extension}"
            self._written += 1
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:  # of an earlier run, or of another server
                continue
            return
