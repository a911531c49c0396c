"""Rows of several requests at once: each client gets its own, whatever the model does with rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import penstock
from penstock import create_app
from penstock.app.v2.models.description import config_of
from penstock.app.v2.models.model import Models
from penstock.pipelines.repository import Repository

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


def model(nodes: Any, inputs: Any, outputs: Any, **weights: Any) -> onnx.ModelProto:
    """Make a model. Nodes are (operator, inputs, outputs, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


class Case(NamedTuple):
    """A model, what one request of some rows sends to it, and what must be true of it."""

    model: onnx.ModelProto
    shapes: Callable[[int], list[tuple[int, ...]]]
    keys: dict[str, Any]
    shares: bool
    """True if requests may share a run."""
    counts: tuple[int, ...] = (1, 2, 3)
    """The rows that a request may have."""


CENTRE = [("ReduceMean", ["x"], ["mean"], {"axes": [0]}), ("Sub", ["x", "mean"], ["y"])]
NON_ZERO = [
    ("Greater", ["x", "half"], ["b"]),
    ("NonZero", ["b"], ["found"]),
    ("Transpose", ["found"], ["places"]),
]
NMS = [
    ("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["found"]),
]
STEP = [
    ("ReduceSum", ["h", "first"], ["sum"], {"keepdims": 0}),
    ("Add", ["x", "sum"], ["y"]),
    ("Add", ["h", "x"], ["next"]),
]
HALF = np.float32(0.5)


def double(batch: Any) -> onnx.ModelProto:
    return model(
        [("Add", ["x", "x"], ["y"])], [("x", FLOAT, [batch, 3])], [("y", FLOAT, [batch, 3])]
    )


def step(batch: Any = "n") -> onnx.ModelProto:
    return model(
        STEP,
        [("x", FLOAT, [batch, 3]), ("h", FLOAT, [2, batch, 3])],
        [("y", FLOAT, [batch, 3]), ("next", FLOAT, [2, batch, 3])],
        first=np.array([0]),
    )


def of_rows(*inner: int) -> Callable[[int], list[tuple[int, ...]]]:
    return lambda rows: [(rows, *inner)]


def of_steps(rows: int) -> list[tuple[int, ...]]:
    return [(rows, 3), (2, rows, 3)]


AXES = {"batch_axis": {"h": 1, "next": 1}}
CASES = {
    "rows": Case(double("n"), of_rows(3), {}, True),
    "fixed": Case(double(4), of_rows(3), {}, True),
    "state": Case(step(), of_steps, AXES, True),
    "fixed_state": Case(step(4), of_steps, AXES, True),
    "state_by_shapes": Case(step(), of_steps, {**AXES, "max": "8x3,2x8x3"}, True),
    "state_without_the_key": Case(step(), of_steps, {}, False),
    "centred": Case(
        model(CENTRE, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])]), of_rows(3), {}, False
    ),
    "stereo": Case(
        model(CENTRE, [("x", FLOAT, [2, "t"])], [("y", FLOAT, [2, "t"])]),
        of_rows(5),
        {},
        False,
        (2,),
    ),
    "non_zero": Case(
        model(NON_ZERO, [("x", FLOAT, ["n", 2])], [("places", INT64, ["k", 2])], half=HALF),
        of_rows(2),
        {},
        False,
    ),
    "detector": Case(
        model(
            NMS,
            [("boxes", FLOAT, ["n", 6, 4]), ("scores", FLOAT, ["n", 1, 6])],
            [("found", INT64, ["k", 3])],
            most=np.array([1]),
            iou=np.array([0.5], np.float32),
            least=np.array([0.3], np.float32),
        ),
        lambda rows: [(rows, 6, 4), (rows, 1, 6)],
        {},
        False,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, case in CASES.items():
        onnx.save(case.model, folder / f"{name}.onnx")
    return folder


def pipeline(folder: Path, name: str, **keys: Any) -> dict[str, Any]:
    node = {"backend": "OnnxTensor", "model": str(folder / f"{name}.onnx"), "threads": 1, "max": 8}
    return {"pipeline": {"name": name}, "net": {**node, "batching_timeout": 5, **keys}}


@asynccontextmanager
async def running(repository: Repository) -> AsyncIterator[None]:
    await repository.start()
    try:
        yield
    finally:
        await repository.close()


def inputs_of(case: Case, count: int) -> list[list[NDArray[np.float32]]]:
    random = np.random.default_rng(0)
    return [
        [
            random.random(shape, np.float32)
            for shape in case.shapes(case.counts[number % len(case.counts)])
        ]
        for number in range(count)
    ]


def expected(made: onnx.ModelProto, arrays: list[Any]) -> list[NDArray[Any]]:
    """Run a model alone, by ONNX's own reference."""
    names = [port.name for port in made.graph.input]
    answer: Any = ReferenceEvaluator(made).run(None, dict(zip(names, arrays, strict=True)))
    return list(answer)


def infer_body(made: onnx.ModelProto, arrays: list[Any]) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": port.name,
                "shape": list(array.shape),
                "datatype": DATATYPES[array.dtype],
                "data": array.reshape(-1).tolist(),
            }
            for port, array in zip(made.graph.input, arrays, strict=True)
        ]
    }


@pytest.mark.parametrize("instances", [1, 2])
@pytest.mark.parametrize("name", CASES)
async def test_64_requests_at_once_get_their_own_rows(
    folder: Path, name: str, instances: int
) -> None:
    case = CASES[name]
    items = inputs_of(case, 64)
    repository = Repository.read(pipeline(folder, name, instance_num=instances, **case.keys))
    async with running(repository):
        described = Models(repository).get(name)
        app = create_app(repository)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        ) as client:
            url = f"/v2/models/{name}/infer"
            answers = await asyncio.gather(
                *(client.post(url, json=infer_body(case.model, arrays)) for arrays in items)
            )
        node = described.pipeline.nodes[0]
        assert (node.statistics.batches < 64) is case.shares
        batches = bool(case.shares and not case.keys)
        assert (config_of(described)["max_batch_size"] > 0) is batches
    for arrays, answer in zip(items, answers, strict=True):
        outputs = answer.raise_for_status().json()["outputs"]
        for output, wanted in zip(outputs, expected(case.model, arrays), strict=True):
            assert output["shape"] == list(wanted.shape)
            np.testing.assert_allclose(output["data"], wanted.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
async def test_items_from_python_get_their_own_rows(folder: Path, name: str) -> None:
    case = CASES[name]
    items = inputs_of(case, 32)
    async with penstock.Pipeline.load(pipeline(folder, name, **case.keys)) as loaded:
        requests = [{"data": arrays if len(arrays) > 1 else arrays[0]} for arrays in items]
        answers = await asyncio.gather(*(loaded(request) for request in requests))
    for arrays, answer in zip(items, answers, strict=True):
        results = answer["result"] if isinstance(answer["result"], list) else [answer["result"]]
        for result, wanted in zip(results, expected(case.model, arrays), strict=True):
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


async def test_requests_of_a_model_with_other_batch_axes_are_bounded(folder: Path) -> None:
    """Rows are counted on the axes that the file names, and may not be more than `max`."""
    repository = Repository.read(pipeline(folder, "state", **AXES))
    async with running(repository):
        app = create_app(repository)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        ) as client:
            metadata = (await client.get("/v2/models/state")).json()
            assert [port["shape"] for port in metadata["inputs"]] == [[-1, 3], [2, -1, 3]]
            for shapes, message in (
                ([(9, 3), (2, 9, 3)], "batch-size must be <= 8"),
                ([(2, 3), (2, 3, 3)], "input 'h' batch size does not match"),
            ):
                arrays = [np.zeros(shape, np.float32) for shape in shapes]
                body = infer_body(CASES["state"].model, arrays)
                answer = await client.post("/v2/models/state/infer", json=body)
                assert answer.status_code == 400 and message in answer.text


OPERATORS = st.sampled_from(
    [
        ("Relu", {}),
        ("Neg", {}),
        ("Softmax", {"axis": 0}),
        ("Softmax", {"axis": 1}),
        ("CumSum", {}),
        ("ReduceMean", {"axes": [0], "keepdims": 1}),
        ("ReduceMax", {"axes": [1], "keepdims": 1}),
        ("TopK", {"axis": 0}),
        ("Transpose", {"perm": [1, 0]}),
        ("Reverse", {}),
    ]
)


def chain(operators: list[tuple[str, dict[str, Any]]]) -> onnx.ModelProto:
    """Make a model y = x + f(x) of operators in a row, from Nx3 to Nx3 for some of them."""
    nodes: list[Any] = []
    last = "x"
    for number, (operator, attributes) in enumerate(operators):
        name = f"t{number}"
        match operator:
            case "CumSum":
                nodes.append((operator, [last, "zero"], [name]))
            case "Reverse":
                nodes.append(("Slice", [last, "last", "least", "zeros", "minus"], [name]))
            case "TopK":
                nodes.append((operator, [last, "one"], [name, f"{name}_i"], attributes))
            case _:
                nodes.append((operator, [last], [name], attributes))
        last = name
    nodes.append(("Add", ["x", last], ["y"]))
    return model(
        nodes,
        [("x", FLOAT, ["n", 3])],
        [("y", FLOAT, ["m", "k"])],
        zero=np.array(0),
        one=np.array([1]),
        last=np.array([-1]),
        least=np.array([-(2**31)]),
        zeros=np.array([0]),
        minus=np.array([-1]),
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operators=st.lists(OPERATORS, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_no_small_graph_crosses_rows(
    operators: list[tuple[str, dict[str, Any]]], seed: int, tmp_path: Path
) -> None:
    made = chain(operators)
    onnx.save(made, tmp_path / "chain.onnx")
    random = np.random.default_rng(seed)
    items = [random.standard_normal((1, 3)).astype(np.float32) for _ in range(4)]

    def alone(array: NDArray[np.float32]) -> NDArray[Any] | None:
        try:
            return expected(made, [array])[0]
        except Exception:  # the reference's exceptions share no base class
            return None

    async def together() -> Any:
        file = pipeline(tmp_path, "chain")
        async with penstock.Pipeline.load(file) as loaded:
            return await asyncio.gather(
                *(loaded({"data": item}) for item in items), return_exceptions=True
            )

    for item, answer in zip(items, asyncio.run(together()), strict=True):
        wanted = alone(item)
        if isinstance(answer, Exception):
            assert wanted is None
        elif wanted is not None:
            np.testing.assert_allclose(answer["result"], wanted, rtol=1e-4, atol=1e-5)
