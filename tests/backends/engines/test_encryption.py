"""Encrypted files, and the key that they need."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.engines import encryption
from penstock.backends.engines.encryption import (
    ENCRYPTED_MAGIC,
    KEY_FILE_VARIABLE,
    KEY_VARIABLE,
    WrongKeyError,
    decrypt,
    encrypt,
    find_key,
    parse_key,
    read_model,
)
from penstock.backends.errors import BackendError

SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "CHUNK_BYTES", 10)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_decryption_returns_what_was_encrypted(small_chunks: Any, size: int) -> None:
    plain = secrets.token_bytes(size)
    data = encrypt(plain, SECRET)
    assert decrypt(data, SECRET, "file") == plain
    assert len(data) == len(ENCRYPTED_MAGIC) + 32 + size + 16 * max(1, -(-size // 10))
    assert size < 9 or plain not in data


def test_the_same_content_is_encrypted_differently_each_time() -> None:
    assert encrypt(b"same", SECRET) != encrypt(b"same", SECRET)


def test_another_key_is_said_to_be_one() -> None:
    with pytest.raises(
        WrongKeyError,
        match=r"m\.encrypted can't be decrypted: it was encrypted with another key, or changed "
        r"since",
    ):
        decrypt(encrypt(b"plain", SECRET), secrets.token_bytes(32), "m.encrypted")


def test_every_change_is_found(small_chunks: Any) -> None:
    data = encrypt(b"0123456789" * 3, SECRET)
    start, chunk = len(ENCRYPTED_MAGIC) + 32, 26
    first, second = data[start : start + chunk], data[start + chunk : start + 2 * chunk]
    changed = [
        bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]])
        for place in range(len(ENCRYPTED_MAGIC), len(data))
    ]
    moved = data[:start] + second + first + data[start + 2 * chunk :]
    cut_off = [
        data[:-1],
        data[:-chunk],
        data[: start + chunk],
        data[: start + 5],
        data[: len(ENCRYPTED_MAGIC) + 3],
        data + b"more",
    ]
    for damaged in (*changed, moved, *cut_off):
        with pytest.raises(WrongKeyError):
            decrypt(damaged, SECRET, "file")


def test_plain_data_is_refused() -> None:
    with pytest.raises(
        BackendError, match="file is not encrypted, or not by penstock encrypt"
    ) as caught:
        decrypt(b"plain", SECRET, "file")
    assert not isinstance(caught.value, WrongKeyError)


@pytest.mark.parametrize(
    "text",
    [SECRET.hex(), SECRET.hex().upper(), base64.b64encode(SECRET).decode(), f" {SECRET.hex()}\n"],
)
def test_keys_as_text(text: Any) -> None:
    assert parse_key(text, "here") == SECRET


@pytest.mark.parametrize(
    "text", ["", "secret", SECRET.hex()[:-2], base64.b64encode(b"short").decode(), "ä" * 64]
)
def test_a_text_that_is_not_a_key_is_refused_and_not_shown(text: Any) -> None:
    with pytest.raises(
        BackendError, match="here does not hold a key: expected 32 bytes as 64 hexadecimal digits"
    ) as caught:
        parse_key(text, "here")
    assert not text or text not in str(caught.value)


def test_the_key_is_in_a_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        BackendError,
        match=f"set {KEY_VARIABLE} to 32 bytes .*, or {KEY_FILE_VARIABLE} to the path of a file",
    ):
        find_key()
    raw, text = tmp_path / "raw", tmp_path / "text"
    raw.write_bytes(SECRET)
    text.write_text(secrets.token_bytes(32).hex())
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(raw))
    assert find_key() == SECRET
    monkeypatch.setenv(KEY_VARIABLE, secrets.token_bytes(32).hex())
    assert find_key() != SECRET and find_key(raw) == SECRET and len(find_key(text)) == 32
    with pytest.raises(
        BackendError, match=f"the key file {tmp_path}/none can't be read: No such file"
    ):
        find_key(tmp_path / "none")


def test_reading_a_model_decrypts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET.hex())
    plain, hidden = tmp_path / "m.onnx", tmp_path / "m.onnx.encrypted"
    plain.write_bytes(b"model")
    hidden.write_bytes(encrypt(b"model", SECRET))
    assert read_model(plain) == read_model(hidden) == b"model"
