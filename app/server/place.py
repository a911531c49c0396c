"""The place at which a server listens, in words."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import Any

from ..settings import Settings

logger = logging.getLogger("penstock.serve")


def base_url(address: Any, settings: Settings) -> str:
    """Write where the server listens: a URL, or the path of its Unix socket.

    `address`: what a listener's `getsockname` returns.
    """
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    host, port = address[:2]
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def places(address: Any, settings: Settings) -> str:
    """Write where the server, its page and its documentation are. `address`: as of `base_url`."""
    where = base_url(address, settings)
    if settings.uds is not None:
        return where
    page = f", page on {where}/" if settings.page else ""
    return f"{where}{page}, docs on {where}/docs"


def warn_if_open(address: Any, settings: Settings) -> None:
    """Warn if everyone who reaches this machine may use the server. `address`: as of `base_url`."""
    if settings.api_key is None and settings.uds is None and ip_address(address[0]).is_unspecified:
        logger.warning(
            "listening on all addresses without an API key: whoever reaches this machine can use "
            "its pipelines; set api_key_file or PENSTOCK_API_KEY, or host to one address"
        )
