"""A Triton to shadow, which is a second Penstock, and the server that shadows it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import create_app
from penstock.app.factory import make_app
from penstock.app.settings import Settings
from penstock.app.shadow.options import ShadowOptions, http_place
from penstock.app.shadow.shadow import Shadow
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.testing import Gate

OPS = """
import numpy as np

from penstock import Backend


def add_sub(data):
    first, second = data
    return [first + second, first - second]


def add_sub_apart(data):
    first, second = data
    return [first + second + 0.5, first - second]


def loud(data):
    texts = [text if isinstance(text, bytes) else text.encode() for text in data.reshape(-1)]
    return np.array([text + b"!" for text in texts], object).reshape(data.shape)


async def count(item, call):
    for number in item["data"].tolist():
        yield np.array([number], np.int32)


class Total(Backend):
    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            if sequence.start:
                sequence.state = 0
            sequence.state = sequence.state + item["data"]
            item["result"] = sequence.state


class Unlucky(Total):
    def forward(self, batch):
        if any(item["data"].item() == 13 for item in batch):
            raise ValueError("bad luck")
        super().forward(batch)
"""

GATE = Gate()


@register_backend("ShadowGate")
class ShadowGate(Backend):
    """Answers its data, once the gate is open."""

    max = 1

    def forward(self, batch: Any) -> None:
        for item in batch:
            GATE.wait()
            item["result"] = item["data"]


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    return {"kind": "tensor", "dtype": dtype, "shape": shape}


def models(ops: Path, **other: str) -> list[dict[str, Any]]:
    """Return pipelines. `other`: other functions for some of them."""

    def model(name: str, inputs: Any, outputs: Any, function: str, **node: Any) -> dict[str, Any]:
        backend = f"Python[{ops}:{other.get(name, function)}]"
        return {
            "pipeline": {"name": name, "version": "1", "inputs": inputs, "outputs": outputs},
            "node": {"backend": backend, **node},
        }

    two, one = tensor("FP32", -1, 4), tensor("INT32", -1, 1)
    text = tensor("BYTES", -1, 1)
    return [
        model(
            "simple",
            {"INPUT0": two, "INPUT1": two},
            {"OUTPUT0": two, "OUTPUT1": two},
            "add_sub",
            max=8,
        ),
        model("loud", {"TEXT": text}, {"LOUD": text}, "loud", max=8),
        model("total", {"INPUT": one}, {"OUTPUT": one}, "Total", sequence={"max_sequences": 2}),
        model("count", {"IN": tensor("INT32", -1)}, {"OUT": tensor("INT32", 1)}, "count"),
    ]


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("shadow") / "ops.py"
    file.write_text(OPS)
    return file


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Theirs:
    """The server that is shadowed. `requests`: the heads of those that came to it."""

    def __init__(self, client: httpx.Client, app: Any) -> None:
        self.client = client
        self.app = app
        self.url = str(client.base_url).rstrip("/")

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.app.state.grpc.port}"

    def count(self, model: str = "simple") -> int:
        """Return how many requests it has answered for a model."""
        pipeline = self.app.state.penstock.pipelines[model]
        return int(pipeline.statistics.succeeded + sum(pipeline.statistics.failures.values()))


def their_settings() -> Settings:
    token: Any = "token"
    return Settings(grpc_port=0, allow_shared_memory=True, admin_token=token)


@contextlib.contextmanager
def their_server(running: Any, sources: Any) -> Iterator[Theirs]:
    app = create_app(sources, settings=their_settings())
    with running(app, http="penstock") as client:
        yield Theirs(client, app)


@pytest.fixture(scope="session")
def theirs(running: Any, ops: Path) -> Iterator[Theirs]:
    with their_server(running, models(ops)) as server:
        yield server


class Shadowing:
    """The server that shadows."""

    def __init__(self, client: httpx.Client, app: Any) -> None:
        self.client = client
        self.app = app
        self.shadow: Shadow = app.state.shadow

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.app.state.grpc.port}"

    def report(self, **headers: str) -> Any:
        return self.client.get("/shadow", headers=headers).json()

    def model(self, name: str = "simple", **expected: Any) -> Any:
        """Return a model's part of the report, once it says what is expected."""
        model: Any = {}

        def is_as_expected() -> bool:
            nonlocal model
            model = self.report()["models"].get(name, {})
            return all(model.get(key) == value for key, value in expected.items())

        until(is_as_expected)
        return model

    def until_compared(self) -> None:
        """Wait until no request is held any more."""
        until(lambda: not self.report()["held"]["requests"])

    def switch(self, query: str = "") -> httpx.Response:
        return self.client.post(f"/shadow/switch{query}")


@pytest.fixture(scope="session")
def shadowing(running: Any) -> Callable[..., Any]:
    @contextlib.contextmanager
    def serve(
        sources: Any, url: str | None, settings: Settings | None = None, **options: Any
    ) -> Iterator[Shadowing]:
        """Shadow the server at `url`. `grpc=TARGET`: its port for gRPC, too."""
        settings = settings or Settings(grpc_port=0 if "grpc" in options else None)
        place = None if url is None else http_place(url)
        chosen = ShadowOptions(http=place, **options)
        app = make_app(
            sources, settings=settings, shadow=lambda *known: Shadow(known[0], chosen, known[1])
        )
        with running(app, http="penstock") as client:
            yield Shadowing(client, app)

    return serve


@pytest.fixture
def gate() -> Iterator[Gate]:
    GATE.reset()
    yield GATE
    GATE.open()


def two_inputs(first: Any = (1, 2, 3, 4), second: Any = (4, 3, 2, 1)) -> dict[str, Any]:
    """Return an infer request for `simple`."""
    return {
        "inputs": [
            {"name": name, "shape": [1, 4], "datatype": "FP32", "data": list(data)}
            for name, data in (("INPUT0", first), ("INPUT1", second))
        ]
    }


def step(sequence: int, value: int, *, start: bool = False, end: bool = False) -> dict[str, Any]:
    """Return an infer request for `total`."""
    flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    data = {"name": "INPUT", "shape": [1, 1], "datatype": "INT32", "data": [value]}
    return {"parameters": flags, "inputs": [data]}
