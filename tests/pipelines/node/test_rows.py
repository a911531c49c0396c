"""The rows of items: counted from arrays where the signature tells them, else `request_size`."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import pipe
from penstock.backends.base import Backend, Signature, TensorPort
from penstock.backends.errors import InvalidInput, InvalidRequest
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

from ..workshop import Workshop, assert_empty, outcomes, serve, turns

LOOPS = ["uvloop"]
"""Engines and children take long, and no loop changes how many rows they get."""

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")

PORTS = (TensorPort("x", "float32", (-1, 2)),)
FOUR = np.arange(8, dtype=np.float32).reshape(4, 2)


ENGINE = """
import penstock
from penstock.backends.base import Signature, TensorPort

PORTS = (TensorPort("x", "float32", (-1, 2)),)


class Engine(penstock.Backend):
    signature = Signature(PORTS, PORTS, batched=True)

    def forward(self, batch):
        assert all(item["request_size"] == len(item["data"]) == 4 for item in batch)
        assert len(batch) == 1
        for item in batch:
            item["result"] = item["data"] + 1


def same(data):
    return data
"""


@pytest.fixture
def workshop(own_registry: None) -> Workshop:
    return Workshop()


@pytest.fixture(autouse=True)
def executions(own_registry: None) -> list[int]:
    """Register `Rows`, which adds 1 to the rows of a batch, and return how many rows each had."""
    ran: list[int] = []

    class Rows(Backend):
        signature = Signature(PORTS, PORTS, batched=True)

        def forward(self, batch: list[Item]) -> None:
            together = np.concatenate([item["data"] for item in batch]) + 1
            ran.append(len(together))
            assert len(together) == sum(item.get("request_size", 1) for item in batch)
            for item in batch:
                count = len(item["data"])
                item["result"], together = together[:count], together[count:]

    register_backend("Rows", Rows)
    return ran


async def test_calls_of_python_logic_count_the_rows_of_their_arrays(executions: list[int]) -> None:
    async def think(item: Item, call: Any) -> Any:
        answers = await call("rows", [{"data": FOUR + number} for number in range(4)])
        assert all("request_size" not in answer for answer in answers)
        return [answer["result"] for answer in answers]

    register_backend("Think", think)
    tables = {
        "pipeline": {"entry": "think"},
        "think": {"backend": "Think"},
        "rows": {"backend": "Rows", "max": 4},
    }
    async with serve(tables) as pipeline:
        results = (await pipeline({"data": 1}))["result"]
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result, FOUR + number + 1)
        assert executions == [4, 4, 4, 4]
        assert_empty(pipeline)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rows": {"next": "then"}, "then": {"backend": "Identity"}},
        {"rows": {"next": "a,b"}, "a": {"backend": "Identity"}, "b": {"backend": "Identity"}},
        {"pipeline": {"loop": True}},
    ],
)
async def test_admission_and_statistics_count_the_rows_of_arrays(more: dict[str, Any]) -> None:
    tables = {**more, "rows": {"backend": "Rows", "max": 8, **more.get("rows", {})}}
    async with serve(tables) as pipeline:
        for item in ({"data": FOUR}, {"data": FOUR, "request_size": 4}):
            before = pipeline.statistics.rows
            submission = pipeline.submit_nowait(dict(item))
            assert pipeline._admission.door.rows == submission.rows == 4
            await submission.future
            assert pipeline.statistics.rows - before == 4 and pipeline._admission.door.rows == 0
        left = pipeline.submit_nowait({"data": FOUR})
        left.leave()
        assert pipeline._admission.door.rows == 0
        assert_empty(pipeline)


@pytest.mark.parametrize(
    "expression",
    [
        "S[Identity,{}]",
        "S[Identity,S[Identity,SyncTensor],{}]",
        "S[Keep(k),Remove(k),Add(k:v),AddInt(n:1),Copy(n:m),Move(m:k),{}]",
        "S[Result2Key(other)[Identity],Sleep(0),{}]",
        "Result2Key[{}]",
        "S[Result2Key(other)[{}],Identity]",
        "HasKey(k)[{},{}]",
        "Random(0.5)[{},{}]",
        "S[Identity,SyncTensor[{}]]",
    ],
)
async def test_rows_are_counted_through_members_that_pass_data_on(
    expression: str, tmp_path: Path
) -> None:
    (tmp_path / "ops.py").write_text(ENGINE)
    backend = expression.replace("{}", f"Python[{tmp_path}/ops.py:Engine]")
    tables = {"rows": {"backend": backend, "max": 4}}
    async with serve(tables) as pipeline:
        answers = await pipeline([{"data": FOUR + number} for number in range(3)])
        for number, answer in enumerate(answers):
            result = answer["result"]
            if "Result2Key" in expression and "Sleep" not in expression:
                np.testing.assert_array_equal(result, FOUR + number)
                result = answer["other" if "other" in answer else "key"]
            np.testing.assert_array_equal(result, FOUR + number + 1)
        assert pipeline.nodes[0].statistics.batches == 3
        with pytest.raises(InvalidInput, match=r"the item has 8 rows.*at most 4 \(max\)"):
            await pipeline({"data": np.concatenate([FOUR, FOUR])})
        assert_empty(pipeline)


@pytest.mark.parametrize(
    "expression",
    [
        "HasKey(k)[{}]",
        "S[Add(data:x),{}]",
        "S[Copy(other:data),{}]",
        "S[Move(data:k),{}]",
        "S[Remove(request_size),{}]",
        "S[Identity,(or){}]",
        "KeyA2KeyB(other,key)[{}]",
        "S[Python[{ops}:same],{}]",
    ],
)
async def test_rows_are_not_counted_where_data_may_change(expression: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(ENGINE)
    engine = f"Python[{tmp_path}/ops.py:Engine]"
    backend = expression.replace("{ops}", f"{tmp_path}/ops.py").replace("{}", engine)
    async with serve({"rows": {"backend": backend, "max": 4}}) as pipeline:
        assert pipeline.nodes[0].counted is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.parametrize("engine", ["OnnxTensor", "TorchScriptTensor"])
async def test_an_engine_says_how_to_give_rows_that_no_one_counts(
    engine: str, tmp_path: Path
) -> None:
    model = tmp_path / ("model.onnx" if engine == "OnnxTensor" else "model.pt")
    if engine == "OnnxTensor":
        onnx = pytest.importorskip("onnx")
        value = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Neg", ["x"], ["y"])],
            "graph",
            [value("x", 1, ["n", 2])],
            [value("y", 1, ["n", 2])],
        )
        opsets = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), model)
    else:
        torch = pytest.importorskip("torch")
        torch.jit.script(torch.nn.Identity()).save(str(model))
    (tmp_path / "ops.py").write_text(ENGINE)
    backend = f"S[Python[{tmp_path}/ops.py:same],{engine}]"
    async with serve({"rows": {"backend": backend, "max": 4, "model": str(model)}}) as pipeline:
        with pytest.raises(
            InvalidInput,
            match=r"expected 1 row .*found shape 4x2: .* set request_size = 4 in the item",
        ):
            await pipeline({"data": FOUR})
        assert len((await pipeline({"data": FOUR, "request_size": 4}))["result"]) == 4


async def test_an_item_with_too_many_rows_fails_softly(executions: list[int]) -> None:
    async def think(item: Item, call: Any) -> Any:
        return (await call("rows", item))["result"]

    register_backend("Think", think)
    tables = {
        "pipeline": {"entry": "think"},
        "think": {"backend": "Think"},
        "rows": {"backend": "Rows", "max": 3},
    }
    async with serve(tables) as pipeline:
        for node in ("think", "rows"):
            with pytest.raises(
                InvalidInput, match=r"'rows': the item has 4 rows.*at most 3 \(max\)"
            ):
                await pipeline({"data": FOUR, "node_name": node})
        good, bad = await pipeline([{"data": FOUR[:3]}, {"data": FOUR}])
        assert len(good["result"]) == 3 and isinstance(bad["error"], InvalidInput)
        assert executions == [3]
        assert outcomes(pipeline, "rows") == {"soft": 3, "ok": 1}
        assert_empty(pipeline)


async def test_a_caller_may_leave_before_the_refusal_is_delivered() -> None:
    async with serve({"rows": {"backend": "Rows", "max": 3}}) as pipeline:
        call = asyncio.ensure_future(pipeline({"data": FOUR}))
        await asyncio.sleep(0)
        call.cancel()
        await turns()
        assert call.cancelled()
        assert_empty(pipeline)


async def test_requests_from_python_share_batches_by_their_rows(executions: list[int]) -> None:
    given = {"data": FOUR[:2]}
    async with serve({"rows": {"backend": "Rows", "max": 5}}) as pipeline:
        answers = await pipeline([given] * 5)
        assert executions == [4, 4, 2]
        assert given.keys() == {"data"}
        assert all(answer.keys() == {"data", "result"} for answer in answers)
        assert_empty(pipeline)


async def test_rows_between_nodes(executions: list[int], workshop: Workshop) -> None:
    """A node that makes rows, one that counts them, and one that takes one item at a time."""
    workshop.acts["make"] = lambda item: np.repeat(item["data"], 2, axis=0)
    tables = {
        "make": {"backend": "Work", "max": 4, "next": "rows"},
        "rows": {"backend": "Rows", "max": 4, "next": "last"},
        "last": {"backend": "Work", "max": 1},
    }
    async with serve(tables, workshop=workshop) as pipeline:
        answers = await pipeline([{"data": FOUR[:1]} for _ in range(4)])
        assert [len(answer["result"]) for answer in answers] == [2] * 4
        assert executions == [4, 4]
        assert [len(batch) for batch in workshop.batches("last")] == [1] * 4
        assert not any("request_size" in item for item in workshop.items)
        with pytest.raises(InvalidInput, match="'rows': the item has 6 rows"):
            await pipeline({"data": FOUR[:3]})
        assert_empty(pipeline)


async def test_a_request_size_that_a_backend_sets_counts_at_the_next_node(
    workshop: Workshop,
) -> None:
    def make(item: Item) -> Any:
        item["request_size"] = item["data"]
        return item["data"]

    workshop.acts["make"] = make
    tables = {
        "make": {"backend": "Work", "max": 4, "next": "work"},
        "work": {"backend": "Work", "max": 4},
    }
    async with serve(tables, workshop=workshop) as pipeline:
        await pipeline([{"data": 3}, {"data": 1}, {"data": 2}])
        assert workshop.batches("work") == [[3, 1], [2]]
        with pytest.raises(InvalidInput, match="'work': the item has 5 rows"):
            await pipeline({"data": 5})
        with pytest.raises(InvalidInput, match="expected a positive int, found 'two'"):
            await pipeline({"data": "two"})
        assert_empty(pipeline)


async def test_the_parts_of_a_stream_count_their_rows(executions: list[int]) -> None:
    async def think(item: Item, call: Any) -> Any:
        for number in range(2):
            yield (await call("rows", {"data": FOUR + number}))["result"]

    register_backend("Think", think)
    tables = {
        "pipeline": {"entry": "think"},
        "think": {"backend": "Think", "next": "last"},
        "last": {"backend": "Rows", "max": 4},
        "rows": {"backend": "Rows", "max": 4},
    }
    async with serve(tables) as pipeline:
        parts = [part["result"] async for part in pipeline.stream({"data": 1})]
        for number, part in enumerate(parts):
            np.testing.assert_array_equal(part, FOUR + number + 2)
        assert executions == [4] * 4
        assert_empty(pipeline)


def test_calls_of_a_pipe_count_their_rows(executions: list[int]) -> None:
    with pipe({"backend": "Rows", "max": 4}) as p:
        items: list[Item] = [{"data": FOUR}, {"data": FOUR[:2]}, {"data": np.tile(FOUR, (2, 1))}]
        p(items)
        assert sorted(executions) == [2, 4]
        assert [len(item["result"]) for item in items[:2]] == [4, 2]
        assert isinstance(items[2]["error"], InvalidInput)
        assert not any("request_size" in item for item in items)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.usefixtures("workshop")
async def test_fan_out_parts_count_their_rows(executions: list[int], skips: bool) -> None:
    tables: dict[str, dict[str, Any]] = {
        "all": {"backend": "CopySplit", "jump": "rows", "split_size": 2},
        "rows": {"backend": "Rows", "max": 4},
    }
    if skips:  # a filter makes each part the run of a graph
        tables["rows"]["next"] = "skipped"
        tables["skipped"] = {"backend": "Work", "filter": "Skip"}
    async with serve(tables) as pipeline:
        answer = await pipeline({"data": np.concatenate([FOUR, FOUR])})
        np.testing.assert_array_equal(answer["result"], np.concatenate([FOUR, FOUR]) + 1)
        assert executions == [4, 4]
        assert_empty(pipeline)
    async with serve({**tables, "rows": {**tables["rows"], "max": 1}}) as pipeline:
        with pytest.raises(InvalidInput, match="'rows': the item has 2 rows"):
            await pipeline({"data": FOUR})
        assert_empty(pipeline)


async def test_a_request_size_that_the_arrays_contradict_is_refused(executions: list[int]) -> None:
    async with serve({"rows": {"backend": "Rows", "max": 8}}) as pipeline:
        with pytest.raises(InvalidInput, match=r"expected 3 \(the item's request_size\).*found 4"):
            await pipeline({"data": FOUR, "request_size": 3})
        assert len((await pipeline({"data": FOUR, "request_size": 4}))["result"]) == 4
        with pytest.raises(InvalidRequest, match="must be <= 8 for 'p'; got 9"):
            await pipeline({"data": np.zeros((9, 2), np.float32), "request_size": 9})


class Odd:
    """An array whose shape can't be read."""

    @property
    def shape(self) -> Any:
        raise RuntimeError("gone")


async def test_what_is_no_array_counts_as_one_row() -> None:
    seen: list[Any] = []

    class Any_(Backend):
        signature = Signature((PORTS[0], PORTS[0]), None, batched=True)

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                seen.append(item.get("request_size", 1))
                item["result"] = item["data"]

    register_backend("Any", Any_)
    async with serve({"any": {"backend": "Any", "max": 4}}) as pipeline:
        for data in (1, [], [FOUR], FOUR[0], [FOUR[0], FOUR[0]], {"a": 1}, np.zeros((0, 2))):
            await pipeline({"data": data})
        assert seen == [1] * 7
        for data in ([FOUR, FOUR], {"a": FOUR, "b": FOUR[:1]}):
            await pipeline({"data": data})
        assert seen[7:] == [4, 4]
        with pytest.raises(InvalidInput, match="the shape of data can't be read: gone"):
            await pipeline({"data": [Odd(), Odd()]})
        assert_empty(pipeline)


# engines


@pytest.fixture
def double(tmp_path: Path) -> Path:
    """Write a model that doubles x[n, 2]."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [value("x", onnx.TensorProto.FLOAT, ["n", 2])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2])],
    )
    path = tmp_path / "double.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), path)
    return path


@pytest.fixture
def double_script(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")

    class Double(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch has no types here
        def forward(self, x: Any) -> Any:
            return x + x

    path = tmp_path / "double.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Double(), torch.zeros(2, 2)).save(str(path))
    return path


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize("backend", ["OnnxTensor", "ModelTensor", "S[OnnxTensor,Identity]"])
async def test_onnx_takes_arrays_of_several_rows(double: Path, backend: str, executor: str) -> None:
    tables: dict[str, Any] = {
        "rows": {"backend": backend, "model": str(double), "max": 4, "executor": executor}
    }
    async with Pipeline.load(tables) as pipeline:
        await doubles(pipeline)


async def test_torchscript_takes_arrays_of_several_rows(double_script: Path) -> None:
    tables = {"rows": {"backend": "TorchScriptTensor", "model": str(double_script), "max": 4}}
    async with Pipeline.load(tables) as pipeline:
        await doubles(pipeline)


async def doubles(pipeline: Pipeline) -> None:
    for answer in await pipeline([{"data": FOUR} for _ in range(3)]):
        np.testing.assert_array_equal(np.asarray(answer["result"]), FOUR * 2)
    (node,) = pipeline.nodes
    assert set(node.statistics.sizes) == {4}
    with pytest.raises(InvalidInput, match="the item has 8 rows, and a batch of this node at most"):
        await pipeline({"data": np.concatenate([FOUR, FOUR])})


async def test_an_engine_inside_an_expression_keeps_to_its_max(double: Path) -> None:
    """Its rows come from the member before, so the node can't count them."""

    class Eight(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = np.concatenate([FOUR, FOUR])[: item["data"]]
                item["request_size"] = item["data"]

    register_backend("Eight", Eight)
    tables = {"rows": {"backend": "S[Eight,OnnxTensor]", "model": str(double), "max": 4}}
    async with Pipeline.load(tables) as pipeline:
        assert len((await pipeline({"data": 4}))["result"]) == 4
        with pytest.raises(InvalidInput, match=r"expected at most 4 rows \(max\), found shape 8x2"):
            await pipeline({"data": 8})


async def test_a_sequential_gives_no_member_more_rows_than_it_takes(executions: list[int]) -> None:
    """The rows of a batch may become more inside it, after the node has counted them."""

    class Make(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = FOUR[: item["data"]]
                item["request_size"] = item["data"]

    register_backend("Make", Make)
    async with serve({"rows": {"backend": "S[Make,Rows]", "max": 4}}) as pipeline:
        answers = await pipeline([{"data": rows} for rows in (4, 2, 1, 3)])
        assert [len(answer["result"]) for answer in answers] == [4, 2, 1, 3]
        assert executions == [4, 3, 3]
        assert_empty(pipeline)
