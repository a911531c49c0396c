"""Damaged files of every format: an image of the right size, or a refusal. Nothing else."""

from __future__ import annotations

import resource
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.backends.errors import InvalidInput
from penstock.backends.image.decode import checked_header, decode

from .files import FILES

MAX_PIXELS = 100_000

SMALL_BYTES = 64 << 20
"""What an image of `MAX_PIXELS` and all that decoders keep beside it have room in."""

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "remove", "repeat", "set"]),
        st.one_of(st.integers(0, 300), st.integers(0, 20_000)),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def changed(encoded: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, content in changes:
        at = place % (len(encoded) or 1)
        before, after = encoded[:at], encoded[at:]
        if kind == "flip":
            after = bytes(a ^ b for a, b in zip(after, content, strict=False)) + after[8:]
        elif kind == "cut":
            after = b""
        elif kind == "insert":
            after = content + after
        elif kind == "remove":
            after = after[len(content) :]
        elif kind == "repeat":
            after = after[: 16 * len(content)] + after
        else:
            after = content + after[len(content) :]
        encoded = before + after
    return encoded


@pytest.mark.parametrize("case", FILES)
@settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.too_slow])
@given(changes=CHANGES)
def test_damaged_files(case: str, changes: list[tuple[str, int, bytes]]) -> None:
    encoded = changed(FILES[case], changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        header = checked_header(encoded, MAX_PIXELS)
        pixels = decode(encoded, MAX_PIXELS)
    except InvalidInput as error:
        assert str(error)
    else:
        height, width, channels = pixels.shape
        assert channels == 3 and 0 < height * width <= MAX_PIXELS
        assert height * width <= header.height * header.width
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < SMALL_BYTES
