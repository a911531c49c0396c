"""Restricted APIs: each group of routes may want a header with a secret, or be off. One rule holds on every route that reaches the same
thing: what the protocol offers below /v2, and our own routes beside it.
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.suggestions import did_you_mean

from .errors import Forbidden, problem
from .paths import is_protocol, path_of
from .request_id import request_id_of

if TYPE_CHECKING:
    from pydantic import SecretStr

GROUPS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)

OFF = "off"

_OWN = (
    (re.compile(r"/predict/.*", re.DOTALL), "inference"),
    (re.compile(r"/openapi\.json|/docs(/.*)?"), "metadata"),
)
"""Routes of an app's own that are in front of the router, or FastAPI's: the others ask by themselves (routes.py)."""


class Rule(NamedTuple):
    """What a group wants; `header` is empty where it is off."""

    header: str = ""
    secret: bytes = b""


class Restriction:
    """The rules by group. `rules`: `api,api:header=secret` or `api:off`, with `;` between; empty: everything is open.

    Raises ValueError for what is no rule; its text has no secret.
    """

    def __init__(self, rules: str = "") -> None:
        self._rules: dict[str, Rule] = {}
        for place, text in enumerate(filter(None, map(str.strip, rules.split(";"))), 1):
            names, colon, wanted = text.partition(":")
            header, equals, secret = (piece.strip() for piece in wanted.partition("="))
            off = bool(colon) and header == OFF and not equals
            if not off and not (
                equals and re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header) and secret
            ):
                raise ValueError(f"rule {place}: expected APIs:header=secret or APIs:off")
            if not (secret.isascii() and secret.isprintable()):
                raise ValueError(
                    f"rule {place}: expected visible ASCII characters only in the secret of {header}"
                )
            rule = Rule() if off else Rule(header.lower(), secret.encode())
            for number, name in enumerate(map(str.strip, names.split(",")), 1):
                if (
                    name not in GROUPS
                ):  # it is not told: it may be a secret, behind a ; of its own or in the wrong place
                    raise ValueError(
                        f"rule {place}: API {number} is none of {', '.join(GROUPS)}{did_you_mean(name, GROUPS)}"
                    )
                if name in self._rules:
                    raise ValueError(f"rule {place}: there is another one for {name}")
                self._rules[name] = rule

    def __bool__(self) -> bool:
        return bool(self._rules)

    def __contains__(self, group: str) -> bool:
        return group in self._rules

    def __repr__(self) -> str:
        return f"<Restriction {', '.join([f'{group}: {rule.header or OFF}' for group, rule in self._rules.items()]) or 'none'}>"

    def check(self, group: str, scope: Scope) -> None:
        """Raises `Forbidden` for a request that may not have what the group is for."""
        if group == "inference" and any(name == b"penstock-trace" for name, _ in scope["headers"]):
            self.check("trace", scope)
        rule = self._rules.get(group)
        if rule is None:
            return
        if not rule.header:
            raise Forbidden("This API is restricted: the operator has turned it off")
        name = rule.header.encode()
        found = [value for header, value in scope["headers"] if header == name]
        if len(found) != 1 or not hmac.compare_digest(found[0], rule.secret):
            raise Forbidden(f"This API is restricted, expecting header '{rule.header}'")

    def check_own(self, scope: Scope) -> None:
        """The same for a request to those of an app's own routes that do not ask. Raises `Forbidden`."""
        path = path_of(scope)
        for pattern, group in _OWN:
            if pattern.fullmatch(path):
                self.check(group, scope)


def restriction_of(rules: SecretStr | None) -> Restriction:
    """That of the setting `restricted_api`."""
    return Restriction() if rules is None else Restriction(rules.get_secret_value())


class Restrict:
    """ASGI middleware for `check_own`. The protocol's table and the ordinary routes ask `Restriction.check` themselves."""

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
                headers += [
                    (b"x-request-id", request_id.encode()),
                    (b"connection", b"close"),
                ]  # the body was not read
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)
