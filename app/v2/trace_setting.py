"""Triton's trace extension: reading and changing the trace settings.

Who may use the protocol may read them. Changing them needs the admin token and the setting
`allow_trace_settings`. No file name can be changed here.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import InvalidRequest, NotReady

from ..trace.trace_settings import FixedSettingError, TraceSettings
from .call import NAME_CHARACTERS_IN_ERRORS, ProtocolCall, ProtocolError, Route
from .models.model import Models
from .permission import check_allowed

TRACE_PATH = "/v2[/models/{model}]/trace/setting"


def trace_routes(trace: TraceSettings, models: Models) -> tuple[Route, ...]:
    """Return the routes of the trace settings."""

    def named(call: ProtocolCall) -> str:
        """Return the model that the path names, "" for all. Raises `InvalidRequest`."""
        name = call.names.get("model", "")
        if name:
            try:
                return models.get(name).name
            except (InvalidRequest, NotReady):
                raise InvalidRequest(
                    f"Request for unknown model : {name[:NAME_CHARACTERS_IN_ERRORS]}"
                ) from None
        return ""

    async def read(call: ProtocolCall) -> dict[str, Any]:
        return trace.document(named(call))

    async def update(call: ProtocolCall) -> dict[str, Any]:
        model = named(call)
        changes = await call.json()
        if changes:
            check_allowed(call, "allow_trace_settings", "Changing the trace settings")
            try:
                trace.update(model, changes)
            except FixedSettingError as error:
                raise ProtocolError(501, str(error)) from None
        return trace.document(model)

    return (
        Route("GET", TRACE_PATH, "trace", read),
        Route("POST", TRACE_PATH, "trace", update),
    )
