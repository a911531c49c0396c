"""Stand-ins for backends that this version knows by name and parameters only, so that files that use them can be checked."""

from __future__ import annotations

from typing import Any

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError
from ..params import EngineParams


class Absent(Backend):
    """Passes `check`; `init` says what is missing."""

    reason = ""

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return (
            params.declared_range()
            if isinstance(params, EngineParams)
            else BatchRange(cls.min, cls.max)
        )

    def init(self, params: Any, context: Context) -> None:
        raise BackendError(self.reason)


def absent(name: str, parameters: type[Params], extra: str, *, installed: bool) -> type[Backend]:
    """A backend that can be declared and not run. `extra` is "" where none is needed."""
    reason = f"{name} is not available in this version of Penstock"
    if extra and not installed:
        reason = f"{name} needs extra {extra}, and is not available in this version of Penstock yet"
    doc = f"Known by name and parameters{f'; needs extra {extra}' if extra else ''}; not available in this version."
    return type(
        name,
        (Absent,),
        {"parameters": parameters, "reason": reason, "__doc__": doc, "__module__": __name__},
    )
