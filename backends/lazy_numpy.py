"""NumPy as `np`, imported at its first use.

NumPy takes 12 MB, and a server whose pipelines have no arrays never needs it. This is for modules
that every server imports; the others import numpy itself.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeGuard

__all__ = ["is_array", "np"]

if TYPE_CHECKING:
    import numpy as np
else:

    class _NumPy:
        """Keeps each of NumPy's names that was used, so that the next use is a plain attribute."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(import_module("numpy"), name)
            setattr(self, name, value)
            return value

    np = _NumPy()


def is_array(value: Any) -> TypeGuard[np.ndarray[Any, Any]]:
    """Return whether a value is an array. Where nothing has imported NumPy, none is."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, "ndarray", ()))
