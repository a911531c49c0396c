"""The log settings over the network: every client may read them, the admin token changes them."""

from __future__ import annotations

from typing import Any

from ..log_settings import log_settings
from .call import ProtocolCall, ProtocolError, Route
from .permission import check_allowed

PATH = "/v2/logging"


def log_settings_routes() -> tuple[Route, ...]:
    """Return the routes that read and change the log settings of this process."""

    async def read(call: ProtocolCall) -> dict[str, Any]:
        return log_settings.read()

    async def update(call: ProtocolCall) -> dict[str, Any]:
        check_allowed(call, "allow_log_settings", "Changing the log settings")
        values = await call.json()
        if values.get("log_file") is not None:
            raise ProtocolError(
                501, "log file location can not be updated through network protocol"
            )
        log_settings.update(values)
        await log_settings.spread()
        return log_settings.read()

    return Route("GET", PATH, "logging", read), Route("POST", PATH, "logging", update)
