"""Ask server.py for the digits on images: client.py FILE ..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.rpc import client_context

digits: Any = thriftpy2.load(str(Path(__file__).with_name("digits.thrift")), "digits_thrift")


def main(*files: str, port: int = 9090) -> None:
    with client_context(digits.Digits, "127.0.0.1", port, socket_timeout=10_000) as client:
        for file in files:
            digit = client.read(Path(file).read_bytes())
            print(f"{file}: {digit.digit} ({digit.score:.0%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
