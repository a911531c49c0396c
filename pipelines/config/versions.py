"""The versions of a pipeline: their order, which of them are served, and their folders.

A pipeline may have a folder with a numbered folder for each version: `digits/1/pipeline.toml`,
`digits/2/pipeline.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION_FILE = "pipeline.toml"
"""The pipeline's file in the folder of a version."""

DEFAULT_VERSION = "1"
"""The version of a pipeline whose file does not name it."""

_FOLDER = re.compile(r"[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions of a pipeline are served: the `latest` N, the `specific` ones, or else all."""

    latest: int | None = None
    specific: tuple[str, ...] | None = None

    @classmethod
    def read(cls, value: Any) -> VersionPolicy:
        """Read the key `version_policy`. Raises ValueError with what was expected."""
        if value == "all":
            return cls()
        if isinstance(value, dict) and len(value) == 1:
            latest, specific = value.get("latest"), value.get("specific")
            if type(latest) is int and latest > 0:
                return cls(latest=latest)
            if (
                isinstance(specific, (list, tuple))
                and specific
                and all(type(version) in {int, str} for version in specific)
            ):
                return cls(specific=tuple(dict.fromkeys(map(str, specific))))
        raise ValueError('expected "all", { latest = 2 } or { specific = [1, 3] }')

    def __str__(self) -> str:
        if self.specific is not None:
            return f"{{ specific = [{', '.join(self.specific)}] }}"
        return '"all"' if self.latest is None else f"{{ latest = {self.latest} }}"

    def choose(self, versions: Sequence[str]) -> list[str]:
        """Choose from versions that are in order, the oldest first.

        Raises ValueError if a specific version is not among them.
        """
        if self.specific is not None:
            for version in self.specific:
                if version not in versions:
                    raise ValueError(
                        f"version_policy names version {version!r}, which is not there: found "
                        f"{', '.join(versions)}"
                    )
            return [version for version in versions if version in self.specific]
        return list(versions if self.latest is None else versions[-self.latest :])


def version_key(version: str) -> list[Any]:
    """Return the key that sorts versions: numbers in them by value, so 2 comes before 10."""
    # Text and digits take turns, so that only like is compared. Not `int`, which refuses texts of
    # thousands of digits.
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if index % 2 else part
        for index, part in enumerate(re.split(r"(\d+)", version))
    ]


def version_files(folder: Path) -> list[Path]:
    """Return the files of the versions in a pipeline's folder, the oldest first.

    Other folders, and those that begin with a zero, are no versions.
    """
    files = [
        file
        for file in folder.glob(f"[1-9]*/{VERSION_FILE}")
        if _FOLDER.fullmatch(file.parent.name) and file.is_file()
    ]
    return sorted(files, key=lambda file: version_key(file.parent.name))
