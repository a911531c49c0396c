"""Checks who may change the server over the network: the admin token, where a setting allows it."""

from __future__ import annotations

from typing import Literal

from ..http.auth import check_admin_token
from .call import ProtocolCall, ProtocolError


def check_allowed(
    call: ProtocolCall,
    setting: Literal["allow_shared_memory", "allow_trace_settings", "allow_log_settings"],
    what: str,
) -> None:
    """Raise the error of a call that may not do `what`, as a sentence begins with it.

    It is Triton's if the operator has not allowed it, else that of the admin token.
    """
    settings = call.settings
    if settings.admin_token is None or not getattr(settings, setting):
        raise ProtocolError(
            501,
            f"{what} is disabled. Start the server with '--{setting.replace('_', '-')}' and an "
            "admin token (PENSTOCK_ADMIN_TOKEN) to enable.",
        )
    check_admin_token(call.scope, settings)
