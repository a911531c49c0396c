"""Who a call is from, if a proxy of `trusted_proxies` has passed it on."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ..settings import split


class TrustedProxies:
    """The proxies whose X-Forwarded-For is believed. False if there are none.

    It reads that header as uvicorn does for HTTP.
    """

    def __init__(self, rules: str | None) -> None:
        """`rules`: addresses and networks, separated by commas, or `*`."""
        names = split(rules)
        self._all = "*" in names
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(name) for name in names if name != "*"
        ]

    def __bool__(self) -> bool:
        return self._all or bool(self._networks)

    def client(self, peer: str, forwarded: str) -> str:
        """Return the address of the client behind `peer`, of a call with that X-Forwarded-For."""
        hosts = [host for entry in forwarded.split(",") if (host := entry.strip())]
        if not hosts or not self._trusts(peer):
            return peer
        return next((host for host in reversed(hosts) if not self._trusts(host)), hosts[0])

    def _trusts(self, host: str) -> bool:
        if self._all:
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


NO_PROXIES = TrustedProxies(None)
