"""The outcome of a conversion: files to write, and notes for the person who converts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from penstock.backends.errors import ConfigError, Problem


@dataclass(slots=True)
class Converted:
    """Files of one model. Nothing is written before `write`.

    `texts`: path below the output folder → content. `copies`: path below the output folder → the
    file or folder that it is a copy of. `notes`: what the conversion has changed or left out.
    """

    name: str
    texts: dict[str, str | bytes] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, output: Path, *, force: bool) -> None:
        """Write the files below `output`. Raises ConfigError for one that is there already, unless
        `force`, and OSError.
        """
        for name in (*self.texts, *self.copies):
            if (output / name).exists() and not force:
                message = "there is such a file: give --force to write over it"
                raise ConfigError([Problem(message, str(output / name))])
        for name, source in self.copies.items():
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
        for name, text in self.texts.items():
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text if isinstance(text, bytes) else text.encode())
