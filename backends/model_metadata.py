"""The metadata of an ONNX file: texts that its exporter wrote beside the graph.

The file is read past its graph, whose weights may be gigabytes, and nothing of it is parsed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

METADATA_PROPS, KEY, VALUE = 14, 1, 2
"""Numbers of fields in onnx.proto: of ModelProto, and of StringStringEntryProto."""

VARINT, EIGHT_BYTES, WITH_LENGTH, FOUR_BYTES = 0, 1, 2, 5
"""Wire types of protobuf."""

MAX_VARINT_BYTES = 10


def read_metadata(path: Path) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file, by key.

    Raises OSError, and ValueError for a file that is not ONNX.
    """
    metadata: dict[str, str] = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in _find(file, size, METADATA_PROPS):
            file.seek(start)
            texts = {}
            for number in (KEY, VALUE):
                file.seek(start)
                for from_byte, to_byte in _find(file, end, number):
                    texts[number] = file.read(to_byte - from_byte).decode()
            if KEY in texts:
                metadata[texts[KEY]] = texts.get(VALUE, "")
            file.seek(end)
    return metadata


def _find(file: BinaryIO, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Yield where each field of this number starts and ends in the message up to `end`.

    The file may be moved within the field that was yielded last.
    """
    while file.tell() < end:
        tag = _varint(file)
        kind = tag & 7
        if kind == WITH_LENGTH:
            length = _varint(file)
        elif kind == VARINT:
            _varint(file)
            continue
        else:
            length = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, end)
        start, after = file.tell(), file.tell() + length
        if after > end:
            raise ValueError("it is not an ONNX file")
        if tag == number << 3 | WITH_LENGTH:
            yield start, after
        file.seek(after)


def _varint(file: BinaryIO) -> int:
    value = 0
    for position in range(MAX_VARINT_BYTES):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << 7 * position
        if byte[0] < 0x80:
            return value
    raise ValueError("it is not an ONNX file")
