"""gRPC's credentials, from the settings `ssl_…`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from ..settings import Settings
from .errors import GrpcError


def credentials(settings: Settings) -> Any:
    """Return the server's `grpc.ServerCredentials`; None without a certificate.

    The files have been read once already, for HTTP (`server/tls.py`), so they fit together. Raises
    `GrpcError` for what gRPC can't do.
    """
    certificate = settings.ssl_certfile
    if certificate is None:
        return None
    key = settings.ssl_keyfile or certificate
    content = key.read_bytes()
    if b"ENCRYPTED" in content:
        raise GrpcError(
            f"ssl_keyfile: {key} has a password, which gRPC can't use: give --grpc-port a key "
            "without one"
        )
    if settings.ssl_cert_reqs == "optional":
        raise GrpcError(
            "ssl_cert_reqs: gRPC knows no optional certificates: set it to none or required with "
            "--grpc-port"
        )
    if settings.ssl_ciphers is not None:
        raise GrpcError(
            "ssl_ciphers: gRPC takes its ciphers from the environment variable "
            "GRPC_SSL_CIPHER_SUITES: leave ssl_ciphers unset with --grpc-port"
        )
    authorities = _content(settings.ssl_ca_certs) if settings.ssl_cert_reqs != "none" else None
    return grpc.ssl_server_credentials(
        [(content, certificate.read_bytes())], authorities, authorities is not None
    )


def _content(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
