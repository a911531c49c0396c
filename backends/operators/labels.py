"""The labels of a model's classes."""

from __future__ import annotations

from pathlib import Path


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a file with one label per line. Raises OSError and UnicodeDecodeError."""
    return tuple(
        line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    )
