"""Serve a pipeline over Thrift. A `pipe` is a function that any thread may call, so any RPC library
can serve it: here each connection has a thread, and calls that come together share a batch.

    pip install thriftpy2
    python examples/thrift/server.py
    python examples/thrift/client.py examples/digits/digit.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2.rpc import make_server

import penstock

FOLDER = Path(__file__).parent
digits: Any = thriftpy2.load(str(FOLDER / "digits.thrift"), module_name="digits_thrift")


class Handler:
    def __init__(self, classify: Callable[..., None]) -> None:
        self.classify = classify

    def read(self, image: bytes) -> Any:
        item: dict[str, Any] = {"data": image}
        try:
            self.classify(item, timeout=5)
        except penstock.PenstockError as error:
            raise digits.Refused(code=error.code, message=str(error)) from error
        if "error" in item:  # the image does not decode
            raise digits.Refused(code=item["error"].code, message=str(item["error"]))
        return digits.Digit(digit=item["class"], score=item["score"])


def main(port: int = 9090) -> None:
    with penstock.pipe(FOLDER.parent / "digits" / "digits.toml") as classify:
        server = make_server(
            digits.Digits, Handler(classify), "127.0.0.1", port, client_timeout=60_000
        )
        server.daemon = True  # Ctrl-C ends the connections too
        with suppress(KeyboardInterrupt):
            server.serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
