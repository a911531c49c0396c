"""Files that SaveMat and SaveTensor write, for debugging."""

from __future__ import annotations

import logging
from pathlib import Path

from ..base import Context
from ..errors import BackendError

logger = logging.getLogger("penstock.backends.image")


class NumberedFiles:
    """New files in a directory, named NODE_INSTANCE_NUMBER.extension.

    Existing files are never overwritten, and none is deleted.
    """

    def __init__(self, save_dir: str, context: Context, backend: str) -> None:
        """Raises BackendError if the directory is missing."""
        self.directory: Path = context.resolve(save_dir)
        self.backend = backend
        if not self.directory.is_dir():
            raise BackendError(
                f"{backend}: save_dir {self.directory} is not an existing directory: create it "
                "first"
            )
        self._prefix = f"{context.node or 'image'}_{context.instance}"
        self._written = 0
        logger.warning("%s: writing every image to %s", backend, self.directory)

    def write(self, content: bytes, extension: str) -> None:
        """Write one more file. Raises BackendError if it can't be written."""
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
            except FileExistsError:  # from an earlier run, or another server
                continue
            return
