"""Restricted APIs: the operator may ask for a secret header on a group of routes, or turn it off.

A rule holds on every route that reaches the same thing: the protocol's below /v2, and our own.
"""

from __future__ import annotations

import hmac
import re

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import OFF, parse_restrictions
from .errors import Forbidden, problem
from .paths import is_protocol, path_of
from .request_id import request_id_of

_OWN_ROUTES = (
    (re.compile(r"/predict/.*", re.DOTALL), "inference"),
    (re.compile(r"/openapi\.json|/docs(/.*)?"), "metadata"),
)
"""Routes that have no dependency to check their group.

They are in front of the router, or FastAPI adds them itself. routes.py checks the others.
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
            raise Forbidden(f"This API is restricted, expecting header '{rule.header}'")

    def check_own(self, scope: Scope) -> None:
        """Raise `Forbidden` as `check` does, for the routes that don't check their group."""
        path = path_of(scope)
        for pattern, group in _OWN_ROUTES:
            if pattern.fullmatch(path):
                self.check(group, scope)


def restriction_of(rules: SecretStr | None) -> Restriction:
    """Make the `Restriction` of the setting `restricted_api`."""
    return Restriction() if rules is None else Restriction(rules.get_secret_value())


class Restrict:
    """ASGI middleware for `Restriction.check_own`.

    The protocol's table and the ordinary routes call `Restriction.check` themselves.
    """

    def __init__(self, app: ASGIApp, restriction: Restriction) -> None:
        self.app = app
        self._restriction = restriction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_protocol(scope):
            try:
                self._restriction.check_own(scope)
            except Forbidden as error:
                request_id = request_id_of(scope)
                status, headers, body = problem(error, request_id)
                headers.append((b"x-request-id", request_id.encode()))
                headers.append((b"connection", b"close"))  # the body was not read
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)
