"""Encrypted model and engine files, which only the holder of a key can read.

The cipher is AES-256-GCM, from the package `cryptography`. A file holds `ENCRYPTED_MAGIC`, a salt
of 32 bytes, and chunks of 64 MiB, each followed by its tag of 16 bytes. The key of a file is
derived from the user's key and the salt (HKDF-SHA256), so the nonces of a file can simply count: 11
bytes are the chunk's number, and the last byte is 1 in the last chunk, else 0. Decryption fails for
chunks that were changed, removed, moved, or taken from another file (STREAM: Hoang, Reyhanitabar,
Rogaway and Vizár, CRYPTO 2015).
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path
from typing import Any

from ..errors import BackendError

ENCRYPTED_MAGIC = b"PENSTOCK-AES-256-GCM-1\n"
"""The first bytes of an encrypted file."""

ENCRYPTED_SUFFIX = ".encrypted"

CHUNK_BYTES = 64 << 20
"""Plain bytes in a chunk. It also bounds how much of a file is in memory twice."""

KEY_VARIABLE = "PENSTOCK_MODEL_KEY"
KEY_FILE_VARIABLE = "PENSTOCK_MODEL_KEY_FILE"
"""The environment variables that hold the key, or name the file that holds it."""

KEY_FORMS = "32 bytes as 64 hexadecimal digits or as base64 (openssl rand -hex 32 makes one)"

_SALT_BYTES, _TAG_BYTES, _KEY_BYTES = 32, 16, 32


class WrongKeyError(BackendError):
    """Raised when a file can't be decrypted: the key is wrong, or the file was changed.

    The cipher can't tell which.
    """


def is_encrypted(path: Path) -> bool:
    """Return whether the file's name ends with `.encrypted`, which marks encrypted files."""
    return path.suffix == ENCRYPTED_SUFFIX


def find_key(file: Path | None = None) -> bytes:
    """Return the 32 bytes of the key.

    They come from `file`, else from the environment variable PENSTOCK_MODEL_KEY, else from the file
    that PENSTOCK_MODEL_KEY_FILE names. Raises BackendError if none of them is given.
    """
    if file is not None:
        return _read_key(file)
    if text := os.environ.get(KEY_VARIABLE):
        return parse_key(text, KEY_VARIABLE)
    if name := os.environ.get(KEY_FILE_VARIABLE):
        return _read_key(Path(name))
    raise BackendError(
        f"encrypted files need a key: set {KEY_VARIABLE} to {KEY_FORMS}, or "
        f"{KEY_FILE_VARIABLE} to the path of a file with a key"
    )


def parse_key(text: str, where: str) -> bytes:
    """Decode a key of 32 bytes from hexadecimal digits or base64.

    Raises BackendError, whose message never shows the text.
    """
    text = text.strip()
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True)):
        try:
            key = decode(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == _KEY_BYTES:
            return key
    raise BackendError(f"{where} does not hold a key: expected {KEY_FORMS}")


def encrypt(plain: bytes | memoryview, key: bytes) -> bytes:
    """Return the content of an encrypted file.

    Raises BackendError if `cryptography` is not installed.
    """
    view = memoryview(plain)
    salt = secrets.token_bytes(_SALT_BYTES)
    cipher = _cipher(key, salt)
    pieces = [ENCRYPTED_MAGIC, salt]
    count = max(1, -(-len(view) // CHUNK_BYTES))
    for index in range(count):
        chunk = view[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        pieces.append(cipher.encrypt(_nonce(index, index == count - 1), chunk, ENCRYPTED_MAGIC))
    return b"".join(pieces)


def decrypt(data: bytes | memoryview, key: bytes, where: str) -> bytes:
    """Return the bytes that `encrypt` was given.

    Raises BackendError for data that `encrypt` did not write, WrongKeyError for another key or
    changed data.
    """
    from cryptography.exceptions import InvalidTag

    view = memoryview(data)
    if bytes(view[: len(ENCRYPTED_MAGIC)]) != ENCRYPTED_MAGIC:
        raise BackendError(
            f"{where} is not encrypted, or not by penstock encrypt: its first bytes are not those "
            "of such a file"
        )
    salt, body = (
        bytes(view[len(ENCRYPTED_MAGIC) :][:_SALT_BYTES]),
        view[len(ENCRYPTED_MAGIC) + _SALT_BYTES :],
    )
    cipher = _cipher(key, salt)
    size = CHUNK_BYTES + _TAG_BYTES
    count = max(1, -(-len(body) // size))
    try:
        chunks = [body[index * size : (index + 1) * size] for index in range(count)]
        return b"".join(
            [
                cipher.decrypt(_nonce(index, index == count - 1), chunk, ENCRYPTED_MAGIC)
                for index, chunk in enumerate(chunks)
            ]
        )
    except (InvalidTag, ValueError) as error:
        raise WrongKeyError(
            f"{where} can't be decrypted: it was encrypted with another key, or changed since"
        ) from error


def read_model(path: Path) -> bytes:
    """Read a file, decrypted if it is `.encrypted`.

    Raises OSError for a file that can't be read, BackendError for an invalid key or content.
    """
    data = path.read_bytes()
    return decrypt(data, find_key(), str(path)) if is_encrypted(path) else data


def _read_key(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackendError(f"the key file {path} can't be read: {error.strerror}") from error
    if len(data) == _KEY_BYTES:
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
    return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt, ENCRYPTED_MAGIC).derive(key))


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])
