"""The TLS context of `penstock serve`, from the settings `ssl_…`."""

from __future__ import annotations

import ssl
from pathlib import Path

from ..settings import Settings


class TlsError(Exception):
    """Raised when the files of the settings `ssl_…` can't be used."""


def tls_context(settings: Settings, protocol: str) -> ssl.SSLContext | None:
    """Return the context for connections that speak `protocol`, by its name in ALPN; None without a
    certificate.

    Raises `TlsError`, whose text names the setting and what to do.
    """
    certificate = settings.ssl_certfile
    if certificate is None:
        return None
    key = settings.ssl_keyfile or certificate
    for name, path in (
        ("ssl_certfile", certificate),
        ("ssl_keyfile", key),
        ("ssl_ca_certs", settings.ssl_ca_certs),
    ):
        if path is not None:
            _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([protocol])
    locked = False

    def password() -> str:  # without this function OpenSSL would ask the terminal
        nonlocal locked
        locked = True
        if settings.ssl_keyfile_password is None:
            raise TlsError(f"{key} needs a password: set ssl_keyfile_password_file")
        return settings.ssl_keyfile_password.get_secret_value()

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if locked:
            raise TlsError(f"ssl_keyfile_password: it does not open {key}") from None
        raise TlsError(_reason(error, certificate, key)) from None
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except ssl.SSLError:
            raise TlsError(
                f"ssl_ca_certs: {settings.ssl_ca_certs} has no certificate: expected a PEM file"
            ) from None
        wanted = settings.ssl_cert_reqs or "required"
        context.verify_mode = ssl.VerifyMode[f"CERT_{wanted.upper()}"]
    if settings.ssl_ciphers is not None:
        try:
            context.set_ciphers(settings.ssl_ciphers)
        except ssl.SSLError:
            raise TlsError(
                f"ssl_ciphers: OpenSSL knows none of {settings.ssl_ciphers!r}: "
                "`openssl ciphers -v` lists those it knows"
            ) from None
    return context


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise TlsError(f"{name}: {path} can't be read: {error.strerror}") from None


def _reason(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"ssl_keyfile: {key} is not the key of the certificate in {certificate}"
    return (
        f"ssl_certfile: {certificate} and {key} are not a certificate and its key in PEM format "
        f"({error.reason or error})"
    )
