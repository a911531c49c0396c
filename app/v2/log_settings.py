"""The log settings over the network: every client may read them, the admin token changes them."""

from __future__ import annotations

from typing import Any

from ..http.auth import check_admin_token
from ..log_settings import log_settings
from ..settings import Settings
from .call import ProtocolCall, ProtocolError, Route

PATH = "/v2/logging"


def log_settings_routes(settings: Settings) -> tuple[Route, ...]:
    """Return the routes that read and change the log settings of this process."""

    async def read(call: ProtocolCall) -> dict[str, Any]:
        return log_settings.read()

    async def update(call: ProtocolCall) -> dict[str, Any]:
        if not settings.allow_log_settings or settings.admin_token is None:
            raise ProtocolError(
                501,
                "Changing the log settings is disabled. Start the server with "
                "'--allow-log-settings' and an admin token (PENSTOCK_ADMIN_TOKEN) to enable.",
            )
        check_admin_token(call.scope, settings)
        values = await call.json()
        if values.get("log_file") is not None:
            raise ProtocolError(
                501, "log file location can not be updated through network protocol"
            )
        log_settings.update(values)
        return log_settings.read()

    return Route("GET", PATH, "logging", read), Route("POST", PATH, "logging", update)
