"""Liveness, readiness and metadata of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import penstock
from penstock.pipelines.repository import Repository

from .call import ProtocolAnswer, ProtocolCall, Route, json_answer


def health_routes(
    repository: Repository, extensions: Sequence[str], ready_when: Literal["all", "any"]
) -> tuple[Route, ...]:
    """Return the routes of the server itself.

    `extensions` are those that this server has, by the protocol's names. `ready_when` is the
    setting.
    """

    async def live(call: ProtocolCall) -> ProtocolAnswer:
        return json_answer({"live": True})

    async def ready(call: ProtocolCall) -> ProtocolAnswer:
        reason = repository.why_not_ready(ready_when)
        return (
            json_answer({"ready": False, "error": reason}, 503)
            if reason
            else json_answer({"ready": True})
        )

    async def server(call: ProtocolCall) -> dict[str, Any]:
        return {"name": "penstock", "version": penstock.__version__, "extensions": list(extensions)}

    return (
        Route("GET", "/v2/health/live", "health", live),
        Route("GET", "/v2/health/ready", "health", ready),
        Route("GET", "/v2", "metadata", server),
    )
