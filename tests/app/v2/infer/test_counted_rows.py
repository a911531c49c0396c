"""The rows of a request at every door, of a model whose state has its batch on the second axis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import penstock
from penstock import create_app

LOGIC = """
import numpy as np


def inputs(byte, rows):
    x = np.full((rows, 3), byte, np.float32)
    return {"data": [x, np.ones((2, rows, 3), np.float32)]}


async def three(item, call):
    answers = await call("net", [inputs(item["data"][0], 3) for _ in range(4)])
    return [float(answer["result"][0].sum()) for answer in answers]


async def parts(item, call):
    for rows in (1, 2, 4):
        answer = await call("net", inputs(item["data"][0], rows))
        yield float(answer["result"][0].sum())


async def five(item, call):
    return await call("net", inputs(item["data"][0], 5))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model y[n, 3] = x[n, 3] + the sum of h[2, n, 3], and Python logic that calls it."""
    folder = tmp_path_factory.mktemp("step")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["h", "first"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
            helper.make_node("Add", ["h", "x"], ["next"]),
        ],
        "step",
        [value("x", TensorProto.FLOAT, ["n", 3]), value("h", TensorProto.FLOAT, [2, "n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3]), value("next", TensorProto.FLOAT, [2, "n", 3])],
        [helper.make_tensor("first", TensorProto.INT64, [1], [0])],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "step.onnx")
    (folder / "logic.py").write_text(LOGIC)
    return folder


def tables(folder: Path, logic: str = "", backend: str = "OnnxTensor", **keys: Any) -> Any:
    net = {
        "backend": backend,
        "model": str(folder / "step.onnx"),
        "threads": 1,
        "max": 4,
        "batch_axis": {"h": 1, "next": 1},
        **keys,
    }
    if not logic:
        return {"pipeline": {"name": "step"}, "net": net}
    return {
        "pipeline": {"name": "step", "entry": "logic"},
        "logic": {"backend": f"Python[{folder}/logic.py:{logic}]"},
        "net": net,
    }


def arrays(rows: int) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(rows)
    return [random.random((rows, 3), np.float32), random.random((2, rows, 3), np.float32)]


def check(given: list[NDArray[np.float32]], result: Any) -> None:
    x, h = given
    np.testing.assert_allclose(result[0], x + h.sum(0), rtol=1e-6)
    np.testing.assert_allclose(result[1], h + x, rtol=1e-6)


@asynccontextmanager
async def client_of(source: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    app = create_app([source])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client, app


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("backend", ["OnnxTensor", "S[OnnxTensor,Identity]", "ModelTensor"])
async def test_calls_from_python(folder: Path, backend: str, executor: str) -> None:
    source = tables(folder, backend=backend, executor=executor, batching_timeout=5)
    items = [arrays(rows) for rows in (1, 2, 3, 4, 1)]
    async with penstock.Pipeline.load(source) as loaded:
        answers = await asyncio.gather(*(loaded({"data": given}) for given in items))
        with pytest.raises(penstock.InvalidInput, match="the item has 5 rows"):
            await loaded({"data": arrays(5)})
        (node,) = loaded.nodes
        assert max(node.statistics.sizes) <= 4
    for given, answer in zip(items, answers, strict=True):
        check(given, answer["result"])
        assert "request_size" not in answer


def test_a_blocking_pipe(folder: Path) -> None:
    with penstock.pipe(tables(folder)) as pipe:
        items: list[Any] = [{"data": arrays(rows)} for rows in (1, 4, 2)]
        pipe(items)
        for item in items:
            check(item["data"], item["result"])
        five: Any = {"data": arrays(5)}
        pipe(five)
        assert "the item has 5 rows" in str(five["error"])


async def test_python_logic_at_predict_and_batch(folder: Path) -> None:
    async with client_of(tables(folder, "three")) as (client, _):
        answer = await client.post("/predict/step", content=b"\x02")
        assert answer.json()["result"] == [36.0] * 4  # 3 rows of 3 numbers: 2 + 1 + 1
        files = [("images", (f"{byte}", bytes([byte]))) for byte in (1, 2, 3)]
        answer = await client.post("/predict/step/batch", files=files)
        results = answer.json()["results"]
        assert [result["result"] for result in results] == [
            [9.0 * (byte + 2)] * 4 for byte in (1, 2, 3)
        ]
    async with client_of(tables(folder, "five")) as (client, _):
        answer = await client.post("/predict/step", content=b"\x02")
        assert answer.status_code == 422 and "the item has 5 rows" in answer.json()["detail"]


async def test_the_parts_of_a_stream(folder: Path) -> None:
    async with client_of(tables(folder, "parts")) as (client, _):
        headers = {"Accept": "text/event-stream"}
        answer = await client.post("/predict/step", content=b"\x01", headers=headers)
        parts = [
            json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")
        ]
    assert [part["result"] for part in parts if "result" in part] == [9.0, 18.0, 36.0]


@pytest.mark.parametrize(
    "backend", ["OnnxTensor", "S[OnnxTensor]", "S[SyncTensor[OnnxTensor]]", "ModelTensor"]
)
async def test_several_rows_below_v2(folder: Path, backend: str) -> None:
    async with client_of(tables(folder, backend=backend)) as (client, _):
        assert (await client.get("/v2/models/step/config")).json()["max_batch_size"] == 0
        for rows, status in ((1, 200), (3, 200), (4, 200), (5, 400)):
            given = arrays(rows)
            inputs = [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": array.shape,
                    "data": array.ravel().tolist(),
                }
                for name, array in zip("xh", given, strict=True)
            ]
            answer = await client.post("/v2/models/step/infer", json={"inputs": inputs})
            assert answer.status_code == status, answer.text
            if status == 200:
                outputs = answer.json()["outputs"]
                result = [np.reshape(output["data"], output["shape"]) for output in outputs]
                check(given, result)


async def test_what_follows_an_engine_may_work_on_one_row(folder: Path) -> None:
    """As with a batch on the first axis: unless the file declares the inputs."""
    source = tables(folder, backend="S[OnnxTensor,Identity]")
    async with client_of(source) as (client, _):
        inputs = [
            {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
            for name, array in zip("xh", arrays(2), strict=True)
        ]
        answer = await client.post("/v2/models/step/infer", json={"inputs": inputs})
        assert answer.status_code == 400 and "batch-size must be <= 1" in answer.text
