"""Changes to what Schemathesis generates. SCHEMATHESIS_HOOKS names this file."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook  # type: ignore[untyped-decorator]  # mypy does not see the package
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Write integers as integers: 1.0 is one to JSON Schema, but not to this protocol."""
    return whole(body)


def whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(member) for member in value]
    if isinstance(value, dict):
        return {name: whole(member) for name, member in value.items()}
    return value
