"""A server with models of many kinds, and a way to send raw bytes to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
import tritonclient.http
from onnx import TensorProto, helper

from penstock import create_app
from penstock.app.settings import Settings

CLIENTS = Path(__file__).parents[3] / ".venv-clients" / "bin" / "python"
"""The Python of clients that can't share our environment. scripts/test makes it."""

OPS = """
import numpy as np


def add_sub(data):
    first, second = data
    return [first + second, first - second]


def where(data):
    first, second = data
    flags = [array.flags for array in data]
    fine = [flag.aligned and flag.writeable and not flag.owndata for flag in flags]
    return np.array([second.ctypes.data - first.ctypes.data, *fine])


def loud(data):
    return np.array([text + "!" for text in data], object)


def several(data):
    return [data, data + 1]


def shout(text):
    return text.upper()


def nothing(data):
    return None


async def letters(item, call):
    for letter in item["data"]:
        yield letter


def described(data):
    return {"length": len(data), "words": data.split()}


class Scaled:
    '''Reads a parameter of the request.'''

    def forward(self, batch):
        for item in batch:
            item["result"] = item["data"] * item.get("factor", 1)


class Ids:
    takes_request_id = True

    def forward(self, batch):
        for item in batch:
            item["result"] = item["request_id"]


class Sum:
    '''A row of outputs by name, and a result.'''

    def forward(self, batch):
        for item in batch:
            item["total"] = item["data"].sum(axis=1)
            item["rows"] = len(batch)
            item["result"] = item["data"]
"""

DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]


def tensor(
    dtype: str | None = None, shape: Sequence[int] = (-1, -1), **more: Any
) -> dict[str, Any]:
    """Return the declaration of a tensor."""
    return (
        {"kind": "tensor", "dtype": dtype, "shape": shape, **more}
        if dtype
        else {"kind": "tensor", **more}
    )


def model(
    name: str,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    backend: str = "Identity",
    **node: Any,
) -> dict[str, Any]:
    """Return the configuration of a pipeline of one node."""
    return {
        "pipeline": {"name": name, "inputs": inputs, "outputs": outputs},
        "node": {"backend": backend, **node},
    }


def matmul(path: Path) -> None:
    """Write a model y = x @ [[1], [2]], z = x: two outputs, a batch of any size."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [1.0, 2.0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["x"], ["z"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2]),
        ],
        [weights],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> list[Any]:
    """Return the sources of all models."""
    folder = tmp_path_factory.mktemp("models")
    ops = folder / "ops.py"
    ops.write_text(OPS)
    (folder / "labels.txt").write_text("zero\none\ntwo\n")
    matmul(folder / "matmul.onnx")
    int32 = tensor("INT32", [-1, 16])
    return [
        digits,
        model(
            "simple",
            {"INPUT0": int32, "INPUT1": int32},
            {"OUTPUT0": int32, "OUTPUT1": int32},
            f"Python[{ops}:add_sub]",
            max=8,
        ),
        *(
            model(f"identity_{name}", {"INPUT0": tensor(name)}, {"OUTPUT0": tensor(name)}, max=8)
            for name in DATATYPES
        ),
        model("rounded", {"X": tensor("FP32")}, {"Y": tensor("BF16")}),
        model("any", {"X": tensor()}, {"Y": tensor()}),
        model(
            "volume",
            {"X": tensor("FP32", [-1, 3, -1, 4])},
            {"Y": tensor("FP32", [-1, 3, -1, 4])},
            max=4,
        ),
        model(
            "where",
            {"A": tensor("FP64", [-1]), "B": tensor("FP32", [-1])},
            {"C": tensor("INT64", [-1])},
            f"Python[{ops}:where]",
        ),
        model(
            "text", {"data": {"kind": "text"}}, {"result": {"kind": "text"}}, f"Python[{ops}:shout]"
        ),
        model("json", {"data": {"kind": "json"}}, {}),
        model("none", {}, {}),
        model(
            "loud",
            {"X": tensor("string", [-1])},
            {"Y": tensor("string", [-1])},
            f"Python[{ops}:loud]",
        ),
        model("several", {"X": tensor("INT32", [-1])}, {}, f"Python[{ops}:several]"),
        model("pairs", {"X": tensor("BYTES", [2])}, {"Y": tensor("BYTES", [2])}),
        model(
            "planes",
            {"X": tensor("FP32", [-1, -1, -1])},
            {"Y": tensor("FP32", [-1, -1, -1])},
            max=2,
        ),
        model(
            "ids", {"data": {"kind": "text"}}, {"result": {"kind": "text"}}, f"Python[{ops}:Ids]"
        ),
        model("letters", {"data": {"kind": "text"}}, {}, f"Python[{ops}:letters]"),
        model("nothing", {"data": {"kind": "text"}}, {}, f"Python[{ops}:nothing]"),
        model("described", {"data": {"kind": "text"}}, {}, f"Python[{ops}:described]"),
        model(
            "scaled",
            {"data": tensor("FP64", [1, -1])},
            {"result": tensor("FP64", [1, -1])},
            f"Python[{ops}:Scaled]",
        ),
        model(
            "sum",
            {"data": tensor("FP32")},
            {"result": tensor("FP32"), "total": tensor("FP32", [-1]), "rows": {"kind": "integer"}},
            f"Python[{ops}:Sum]",
            max=8,
        ),
        model(
            "scores",
            {"X": tensor("FP32")},
            {"Y": tensor("FP32", labels=str(folder / "labels.txt"))},
            max=4,
        ),
        {
            "pipeline": {"name": "matmul"},
            "net": {"backend": "OnnxTensor", "model": str(folder / "matmul.onnx"), "max": 4},
        },
        model("ranked", {"X": tensor("FP32")}, {"Y": tensor("FP32")}, max=2, priority_levels=3),
    ]


class Served:
    """A running server. `http` is an httpx client of it."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.address = str(http.base_url).removeprefix("http://").rstrip("/")

    def infer(
        self,
        name: str,
        document: Any,
        *blobs: bytes,
        length: int | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST a document and the bytes after it.

        `length` is the value of the length header, if it is not the true one.
        """
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        sent: dict[str, Any] = dict(headers or {})
        if blobs or length is not None:
            sent["Inference-Header-Content-Length"] = (
                length
                if isinstance(length, bytes)
                else str(len(text) if length is None else length)
            )
        return self.http.post(
            f"/v2/models/{name}/infer", content=text + b"".join(blobs), headers=sent
        )

    def refused(self, *args: Any, **more: Any) -> str:
        """Return the error of a request that is the client's fault."""
        answer = self.infer(*args, **more)
        assert answer.status_code == 400, (answer.status_code, answer.text[:500])
        assert (
            list(answer.json()) == ["error"]
            and answer.headers["content-type"] == "application/json"
        )
        error: str = answer.json()["error"]
        return error

    def raw(self, *pieces: bytes, leave: bool = False) -> bytes:
        """Send raw bytes, and return all that the server answers until it closes.

        The server may answer and close before it has all of them.
        """
        with socket.create_connection(
            (self.http.base_url.host, self.http.base_url.port), 30
        ) as connection:
            answer = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    connection.sendall(piece)
                while not leave and (more := connection.recv(65536)):
                    answer += more
            return answer

    @staticmethod
    def simple(**more: Any) -> dict[str, Any]:
        """Return a request to `simple`, as JSON."""
        data = list(range(16))
        return {
            "inputs": [
                {"name": name, "shape": [1, 16], "datatype": "INT32", "data": data}
                for name in ("INPUT0", "INPUT1")
            ],
            **more,
        }

    @staticmethod
    def one(
        datatype: str,
        shape: Sequence[int],
        data: Any = None,
        size: int | None = None,
        name: str = "INPUT0",
        **more: Any,
    ) -> dict[str, Any]:
        """Return a request with one input: JSON, or `size` bytes after it."""
        given = {"parameters": {"binary_data_size": size}} if size is not None else {"data": data}
        return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, **given}], **more}


@pytest.fixture(scope="session")
def served(sources: list[Any], running: Any) -> Iterator[Served]:
    """Run a server that has all models."""
    app = create_app(
        sources, settings=Settings(max_body=8 << 20, max_inflated=1 << 20, max_chunks=1000)
    )
    with running(app, http="penstock") as client:
        yield Served(client)


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    """Connect tritonclient to the server."""
    with tritonclient.http.InferenceServerClient(served.address) as client:
        yield client


@pytest.fixture(scope="session")
def client_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that runs Python in the environment of the clients.

    `client_run(package, *arguments)` is for a script or a module that needs the package.
    """

    def run(
        package: str, *arguments: object, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        check = (
            f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
        )
        if not CLIENTS.exists() or subprocess.run([CLIENTS, "-c", check], check=False).returncode:
            pytest.fail(
                f"{CLIENTS} does not have {package}: scripts/test installs it "
                "(kserve: with Python 3.11 to 3.13)"
            )
        command = [str(CLIENTS), *map(str, arguments)]
        folder = tmp_path_factory.mktemp(package)
        variables = os.environ | environment
        return subprocess.run(
            command,
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
