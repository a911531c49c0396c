"""Whether the server is alive and ready, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import penstock
from penstock.pipelines.repository import Repository

from .call import Answer, Call, Route, json_answer


def health_routes(repository: Repository, extensions: Sequence[str]) -> tuple[Route, ...]:
    """`extensions`: those that this server has, by the names that the protocol gives them."""

    async def live(call: Call) -> Answer:
        return json_answer({"live": True})

    async def ready(call: Call) -> Answer:
        reason = repository.not_ready
        return (
            json_answer({"ready": False, "error": reason}, 503)
            if reason
            else json_answer({"ready": True})
        )

    async def server(call: Call) -> Any:
        return {"name": "penstock", "version": penstock.__version__, "extensions": list(extensions)}

    return (
        Route("GET", "/v2/health/live", "health", live),
        Route("GET", "/v2/health/ready", "health", ready),
        Route("GET", "/v2", "metadata", server),
    )
