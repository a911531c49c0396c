"""The files in which an archive of TorchServe describes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BackendError


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an unpacked archive. Raises BackendError if it has none."""
    path = folder / "MAR-INF" / "MANIFEST.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest["model"]["handler"], str):
            return dict(manifest)
        reason = "its handler is no text"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise BackendError(f"{path} is no manifest of a TorchServe archive: {reason}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read an archive's `configFile`. Raises BackendError."""
    try:
        import yaml
    except ImportError:
        raise BackendError(f"{path}: to read it needs PyYAML (pip install pyyaml)") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BackendError(f"{path} can't be read: {error}") from error
    return dict(content or {})
