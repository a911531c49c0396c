"""Restricted APIs: the operator may ask for a secret header on a group of routes, or turn it off.

A rule holds on every route that reaches the same thing: the protocol's below /v2, and our own. What
serves a route checks its rule: `Predict`, the protocol's table, and the ordinary routes. So no path
can be one thing to the check and another to the router.
"""

from __future__ import annotations

import hmac

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import OFF, parse_restrictions
from .errors import Forbidden

GRPC_PREFIX = "triton-grpc-protocol-"
"""Triton's clients put it before a header's name in the metadata of a call by gRPC, where the name
itself is accepted, too.
"""


class Restriction:
    """The rules of `restricted_api` by group. False if there are none.

    `rules`: as `parse_restrictions` reads them. Raises ValueError for rules that are malformed.
    """

    def __init__(self, rules: str = "") -> None:
        self._rules = parse_restrictions(rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def __contains__(self, group: str) -> bool:
        return group in self._rules

    def __repr__(self) -> str:
        rules = [f"{group}: {rule.header or OFF}" for group, rule in self._rules.items()]
        return f"<Restriction {', '.join(rules) or 'none'}>"

    def check(self, group: str, scope: Scope) -> None:
        """Raise `Forbidden` for a request that may not use the group's routes.

        A request for inference that asks for its trace needs what the group `trace` asks for too.
        """
        if group == "inference" and any(name == b"penstock-trace" for name, _ in scope["headers"]):
            self.check("trace", scope)
        rule = self._rules.get(group)
        if rule is None:
            return
        if not rule.header:
            raise Forbidden("This API is restricted: the operator has turned it off")
        name = rule.header.encode()
        values = [value for header, value in scope["headers"] if header == name]
        if len(values) != 1 or not hmac.compare_digest(values[0], rule.secret):
            raise Forbidden(_missing(rule.header, scope))


def _missing(header: str, scope: Scope) -> str:
    """Say which header a request needs, in Triton's words."""
    if scope.get("type") == "grpc":
        return f"This protocol is restricted, expecting header '{GRPC_PREFIX}{header}'"
    return f"This API is restricted, expecting header '{header}'"


def restriction_of(rules: SecretStr | None) -> Restriction:
    """Make the `Restriction` of the setting `restricted_api`."""
    return Restriction() if rules is None else Restriction(rules.get_secret_value())


class Restricted:
    """An ASGI app inside a route, for those who may use the group's routes."""

    def __init__(self, app: ASGIApp, group: str, restriction: Restriction) -> None:
        self.app = app
        self._group = group
        self._restriction = restriction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._restriction.check(self._group, scope)
        await self.app(scope, receive, send)
