"""The addresses of the public internet, the only ones that `fetch.py` connects to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

PRIVATE_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; 0.0.0.0 reaches the machine itself
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's host agent, on an address that looks public
            "169.254.0.0/16",  # link-local; most clouds' metadata
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
"""The IANA special-purpose registry (RFC 6890 and later).

Written out, because Python's `is_global` has changed between minor versions.
"""

UNICAST_6 = IPv6Network("2000::/3")
"""The range assigned as global unicast.

It excludes ::1, ::ffff:0:0/96 (IPv4-mapped), 64:ff9b::/96 (NAT64), fc00::, fe80:: and ff00::.
"""

PRIVATE_6 = tuple(
    map(
        IPv6Network,
        (
            # IETF protocol assignments: Teredo (it carries an IPv4 address), benchmarking, ORCHID
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",  # 6to4, which carries an IPv4 address
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)


def is_public(address: str) -> bool:
    """Return whether an address, in its standard form, belongs to the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in PRIVATE_4)
    return parsed.scope_id is None and parsed in UNICAST_6 and not _is_special(parsed)


def _is_special(address: IPv6Address) -> bool:
    if any(address in network for network in PRIVATE_6):
        return True
    # ISATAP (RFC 5214): any prefix, then 0:5efe or 200:5efe, then an IPv4 address to which a router
    # would tunnel.
    return address.packed[8:12] in (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")
