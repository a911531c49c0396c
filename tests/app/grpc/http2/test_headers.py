"""Header blocks: what is kept of them means the same when it comes again."""

from __future__ import annotations

import random

import pytest
from hpack import Decoder, Encoder

from penstock.app.grpc.http2.headers import HeaderReader
from penstock.app.grpc.http2.wire import literals, timeout_of


def test_known_blocks_mean_the_same() -> None:
    chance = random.Random(3)
    encoder, reader, plain = Encoder(), HeaderReader(1 << 16), Decoder(1 << 16)
    for _ in range(500):
        if chance.random() < 0.02:
            encoder.header_table_size = chance.choice([64, 200, 4096])
        fields = [(":path", chance.choice(["/a/B", "/a/C"]))]
        fields += [
            (f"k{chance.randrange(6)}", f"v{chance.randrange(4)}")
            for _ in range(chance.randrange(5))
        ]
        block = encoder.encode(fields)
        expected = [(str(name), str(value)) for name, value in plain.decode(block)]
        head = reader.read(block)
        assert [(":path", head.method), *head.metadata] == expected == fields


def test_metadata() -> None:
    block = literals(
        [
            (b":path", b"/a/B"),
            (b":method", b"POST"),
            (b"content-type", b"application/grpc+proto"),
            (b"grpc-encoding", b"gzip"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"1500m"),
            (b"plain", b"a"),
            (b"some-bin", b"AP8"),
        ]
    )
    head = HeaderReader(1 << 16).read(block)
    assert head == (
        "/a/B",
        (("plain", "a"), ("some-bin", b"\x00\xff")),
        1.5,
        b"gzip",
        0,
        "",
        head.size,
    )


@pytest.mark.parametrize(
    "field",
    [(b"grpc-timeout", b"soon"), (b"some-bin", b"!"), (b"Upper", b"a"), (b"connection", b"close")],
)
def test_malformed_metadata(field: tuple[bytes, bytes]) -> None:
    head = HeaderReader(1 << 16).read(literals([(b":path", b"/a/B"), field]))
    assert "malformed" in head.problem


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200),
        (b"2M", 120),
        (b"2S", 2),
        (b"20m", 0.02),
        (b"20u", 2e-5),
        (b"20n", 2e-8),
        (b"99999999S", 99999999),
        (b"123456789S", None),
        (b"1", None),
        (b"", None),
        (b"-1S", None),
        (b"1s", None),
    ],
)
def test_timeouts(text: bytes, seconds: float | None) -> None:
    assert timeout_of(text) == (None if seconds is None else pytest.approx(seconds))
