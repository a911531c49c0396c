"""Model and engine files that only the holder of a key can read: AES-256-GCM, by `cryptography`.

A file is `MAGIC`, a salt of 32 bytes, and chunks of 64 MiB, each with its 16 bytes of tag. The key of a file is derived from the
user's and the salt (HKDF-SHA256), so a nonce may count: 11 bytes of the chunk's number, and one that is 1 in the last chunk. Chunks
that are changed, missing, moved or of another file are found (STREAM: Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015).
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path
from typing import Any

from ..errors import BackendError

MAGIC = b"PENSTOCK-AES-256-GCM-1\n"
SUFFIX = ".encrypted"
CHUNK = 64 << 20
"""Plain bytes a chunk; also bounds what is in memory twice."""

KEY = "PENSTOCK_MODEL_KEY"
KEY_FILE = "PENSTOCK_MODEL_KEY_FILE"
KEY_FORMS = "32 bytes as 64 hexadecimal digits or as base64 (openssl rand -hex 32 makes one)"

_SALT, _TAG, _KEY = 32, 16, 32


class WrongKeyError(BackendError):
    """The file is not what this key encrypted: another key, or a changed file. Nobody can tell which."""


def is_encrypted(path: Path) -> bool:
    return path.suffix == SUFFIX


def find_key(file: Path | None = None) -> bytes:
    """The key in `file`, else in the environment, else in the file that the environment names. Raises BackendError without one."""
    if file is not None:
        return _read_key(file)
    if text := os.environ.get(KEY):
        return parse_key(text, KEY)
    if name := os.environ.get(KEY_FILE):
        return _read_key(Path(name))
    raise BackendError(
        f"encrypted files need a key: set {KEY} to {KEY_FORMS}, or {KEY_FILE} to a file with that"
    )


def parse_key(text: str, where: str) -> bytes:
    """The 32 bytes that a text stands for. The message never shows them."""
    text = text.strip()
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == _KEY:
            return key
    raise BackendError(f"{where} holds no key: expected {KEY_FORMS}")


def encrypt(plain: bytes | memoryview, key: bytes) -> bytes:
    view = memoryview(plain)
    salt = secrets.token_bytes(_SALT)
    cipher = _cipher(key, salt)
    parts = [MAGIC, salt]
    count = max(1, -(-len(view) // CHUNK))
    for index in range(count):
        chunk = view[index * CHUNK : (index + 1) * CHUNK]
        parts.append(cipher.encrypt(_nonce(index, index == count - 1), chunk, MAGIC))
    return b"".join(parts)


def decrypt(data: bytes | memoryview, key: bytes, where: str) -> bytes:
    """What `encrypt` was given. Raises BackendError where data are of another kind, WrongKeyError where key or content are not right."""
    from cryptography.exceptions import InvalidTag

    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise BackendError(
            f"{where} is not encrypted, or not by penstock encrypt: it does not begin as such files do"
        )
    salt, body = bytes(view[len(MAGIC) :][:_SALT]), view[len(MAGIC) + _SALT :]
    cipher = _cipher(key, salt)
    size = CHUNK + _TAG
    count = max(1, -(-len(body) // size))
    try:
        chunks = [body[index * size : (index + 1) * size] for index in range(count)]
        return b"".join(
            [
                cipher.decrypt(_nonce(index, index == count - 1), chunk, MAGIC)
                for index, chunk in enumerate(chunks)
            ]
        )
    except (InvalidTag, ValueError) as error:
        raise WrongKeyError(
            f"{where} can't be decrypted: it was encrypted with another key, or changed since"
        ) from error


def read_model(path: Path) -> bytes:
    """The file as it was before `penstock encrypt`, where it is `.encrypted`; else as it is. Raises OSError and BackendError."""
    data = path.read_bytes()
    return decrypt(data, find_key(), str(path)) if is_encrypted(path) else data


def _read_key(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackendError(f"the key file {path} can't be read: {error.strerror}") from error
    if len(data) == _KEY:
        return data
    return parse_key(data.decode("ascii", "replace"), f"the key file {path}")


def _cipher(key: bytes, salt: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ModuleNotFoundError as error:
        raise BackendError(
            "encrypted files need cryptography: pip install cryptography (extra tensorrt brings it)"
        ) from error
    return AESGCM(HKDF(SHA256(), _KEY, salt, MAGIC).derive(key))


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])
