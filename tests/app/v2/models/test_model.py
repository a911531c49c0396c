"""Pipelines as models: their inputs and outputs, from their files and their engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.app.v2.models.model import Models
from penstock.backends.base import Backend, Signature, TensorPort
from penstock.backends.errors import BackendError, InvalidRequest, NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository

TWO = Signature(
    (TensorPort("a", "float32", (-1, 2)), TensorPort("b", "string", (-1, 3))),
    (TensorPort("c", "bfloat16", (-1, 4)),),
    True,
)
RANK_ONE = Signature(
    (TensorPort("a", "float32", (-1,)),), (TensorPort("c", "float32", (-1,)),), True
)
WHOLE = Signature(
    (TensorPort("a", "float32", (-1, 2)),), (TensorPort("c", "float32", (2,)),), False
)


class Knows(Backend):
    max = 6

    def forward(self, batch: Any) -> None:
        for item in batch:
            item["result"] = item["data"]


@register_backend("KnowsTwo")
class KnowsTwo(Knows):
    signature = TWO


@register_backend("KnowsRankOne")
class KnowsRankOne(Knows):
    signature = RANK_ONE


@register_backend("KnowsWhole")
class KnowsWhole(Knows):
    signature = WHOLE


async def described(table: Any, **nodes: Any) -> Any:
    """Return the inputs, outputs and batch bound of a pipeline."""
    repository = Repository([load({"pipeline": {"name": "p", **table}, **nodes})])
    await repository.start()
    try:
        model = Models(repository).get("p")
        return (
            [
                (
                    tensor.name,
                    tensor.datatype and tensor.datatype.name,
                    tensor.shape,
                    tensor.position,
                )
                for tensor in model.inputs
            ],
            [
                (
                    tensor.name,
                    tensor.datatype and tensor.datatype.name,
                    tensor.shape,
                    tensor.position,
                )
                for tensor in model.outputs
            ],
            model.max_batch_size,
        )
    finally:
        await repository.close(0)


@pytest.mark.parametrize(
    "nodes",
    [
        {"n": {"backend": "KnowsTwo"}},
        {"n": {"backend": "S[KnowsTwo,Identity,KnowsTwo]"}},
        {"n": {"backend": "KnowsTwo", "next": "m"}, "m": {"backend": "KnowsTwo"}},
    ],
)
async def test_an_engine_describes_a_pipeline(nodes: Any) -> None:
    inputs, outputs, bound = await described({}, **nodes)
    assert inputs == [("a", "FP32", (-1, 2), 0), ("b", "BYTES", (-1, 3), 1)]
    assert outputs == [("c", "BF16", (-1, 4), 0)] and bound == 6


async def test_nodes_after_an_engine_bound_the_batch_to_one_row() -> None:
    inputs, outputs, bound = await described({}, n={"backend": "S[KnowsTwo,Identity]"})
    assert (
        [name for name, *_ in inputs] == ["a", "b"]
        and outputs == [("result", None, None, 0)]
        and bound == 1
    )


async def test_an_engine_in_a_branch_describes_nothing() -> None:
    nodes = {
        "root": {"backend": "KnowsTwo", "next": "left,right"},
        "left": {"backend": "KnowsTwo"},
        "right": {"backend": "KnowsTwo"},
    }
    inputs, outputs, _ = await described({}, **nodes)
    assert inputs == [("data", "BYTES", (1,), None)] and outputs == [("result", None, None, 0)]


async def test_an_engine_says_whether_it_has_a_batch_dimension() -> None:
    assert (await described({}, n={"backend": "KnowsRankOne"}))[2] == 6
    assert (await described({}, n={"backend": "KnowsWhole"}))[2] == 0


async def test_the_file_names_the_engines_inputs() -> None:
    table = {
        "inputs": {"x": {"kind": "tensor"}, "y": {"kind": "tensor"}},
        "outputs": {"z": {"kind": "tensor", "dtype": "FP32"}},
    }
    inputs, outputs, bound = await described(table, n={"backend": "KnowsTwo"})
    assert inputs == [("x", "FP32", (-1, 2), 0), ("y", "BYTES", (-1, 3), 1)]
    assert outputs == [("z", "FP32", (-1, 4), 0)] and bound == 6


async def test_declared_data_makes_all_inputs_keys() -> None:
    table = {
        "inputs": {
            "data": {"kind": "tensor", "dtype": "uint8", "shape": [-1, 3]},
            "threshold": {"kind": "number"},
        }
    }
    inputs, outputs, bound = await described(table, n={"backend": "Identity"})
    assert (
        inputs == [("data", "UINT8", (-1, 3), None), ("threshold", "FP64", (1,), None)]
        and bound == 0
    )
    assert outputs == [("result", None, None, 0)]


async def test_an_engine_of_several_inputs_does_not_describe_keys() -> None:
    table = {"inputs": {"data": {"kind": "tensor"}, "other": {"kind": "tensor"}}}
    inputs, _, bound = await described(table, n={"backend": "KnowsTwo"})
    assert inputs == [("data", None, None, None), ("other", None, None, None)] and bound == 0
    inputs, _, bound = await described(table, n={"backend": "KnowsRankOne"})
    assert inputs == [("data", "FP32", (-1,), None), ("other", None, None, None)] and bound == 0


@pytest.mark.parametrize(
    ("count", "backend"), [(1, "KnowsTwo"), (3, "KnowsTwo"), (2, "KnowsRankOne")]
)
async def test_an_engine_describes_only_its_own_inputs(count: int, backend: str) -> None:
    names = "xyz"[:count]
    table = {
        "inputs": {name: {"kind": "tensor"} for name in names},
        "outputs": {name: {"kind": "tensor"} for name in (*names, "more")},
    }
    inputs, outputs, bound = await described(table, n={"backend": backend})
    assert inputs == [(name, None, None, part) for part, name in enumerate(names)] and bound == 0
    assert outputs == [(name, None, None, part) for part, name in enumerate((*names, "more"))]


async def test_without_inputs_there_is_no_batch() -> None:
    assert await described({"inputs": {}}, n={"backend": "Identity", "max": 4}) == (
        [],
        [("result", None, None, 0)],
        0,
    )


async def test_declared_outputs_beside_the_result() -> None:
    table = {"outputs": {"label": {"kind": "text"}, "class": {"kind": "integer", "dtype": "INT32"}}}
    _, outputs, _ = await described(table, n={"backend": "Identity"})
    assert outputs == [
        ("result", None, None, 0),
        ("label", "BYTES", (1,), None),
        ("class", "INT32", (1,), None),
    ]


@pytest.mark.parametrize(("shape", "bound"), [([-1, 3], 4), ([-1], 0), ([1, -1], 0), (None, 0)])
async def test_a_batch_has_an_open_first_size_and_a_second_one(shape: Any, bound: int) -> None:
    port = {"kind": "tensor", "dtype": "FP32"} | ({"shape": shape} if shape else {})
    assert (await described({"inputs": {"x": port}}, n={"backend": "Identity", "max": 4}))[
        2
    ] == bound


async def test_the_least_max_of_the_nodes_bounds_a_batch() -> None:
    port = {"kind": "tensor", "shape": [-1, 3]}
    nodes = {
        "n": {"backend": "Identity", "max": 9, "next": "m"},
        "m": {"backend": "Identity", "max": 5},
    }
    assert (await described({"inputs": {"x": port}}, **nodes))[2] == 5


async def test_composites_have_no_batch() -> None:
    async def think(item: Any, call: Any) -> Any:
        return item["data"]

    nodes = {"n": {"backend": "think"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.backends.expressions.registry._registered", {})
        register_backend("think", think)
        assert (await described({"inputs": {"x": {"kind": "tensor", "shape": [-1, 3]}}}, **nodes))[
            2
        ] == 0


@pytest.mark.parametrize(
    ("port", "text"),
    [
        ({"kind": "tensor", "dtype": "string", "shape": [-1]}, True),
        ({"kind": "tensor", "dtype": "BYTES", "shape": [-1]}, False),
        ({"kind": "text", "shape": [3]}, True),
        ({"kind": "text"}, True),
        ({"kind": "bytes", "shape": [3]}, False),
        ({"kind": "bytes"}, False),
    ],
)
async def test_strings_that_are_text(port: Any, text: bool) -> None:
    two = {"x": {"kind": "tensor"}, "y": {"kind": "tensor"}}
    sources = [
        {"pipeline": {"name": "p", "inputs": {"x": port}}, "n": {"backend": "Identity"}},
        {"pipeline": {"name": "two", "inputs": two}, "n": {"backend": "KnowsTwo"}},
    ]
    repository = Repository([load(source) for source in sources])
    await repository.start()
    try:
        assert [tensor.text for tensor in Models(repository).get("p").inputs] == [text]
        assert [tensor.text for tensor in Models(repository).get("two").inputs] == [
            False,
            True,
        ]  # from the engine
    finally:
        await repository.close(0)


async def test_models_follow_the_repository() -> None:
    config = load({"pipeline": {"name": "p"}, "n": {"backend": "Identity"}})
    repository = Repository([config])
    models = Models(repository)
    with pytest.raises(NotReady):
        models.get("p")
    await repository.start()
    try:
        first = models.get("p")
        assert models.get("p", "1") is first
        await repository.load(config)
        assert (
            models.get("p") is not first and models.get("p").pipeline is repository.pipelines["p"]
        )
        await repository.unload("p", 0)
        with pytest.raises(InvalidRequest, match="Request for unknown model: 'p' is not found"):
            models.get("p")
    finally:
        await repository.close(0)


async def test_outputs_are_found_in_the_item() -> None:
    tensors = {"a": {"kind": "tensor"}, "b": {"kind": "tensor"}}
    repository = Repository(
        [
            load(
                {
                    "pipeline": {"name": "p", "outputs": {**tensors, "n": {"kind": "integer"}}},
                    "n": {"backend": "Identity"},
                }
            )
        ]
    )
    await repository.start()
    try:
        model = Models(repository).get("p")

        def values(item: Any) -> Any:
            return {tensor.name: value for tensor, value in model.values_of(item)}

        assert values({"data": 0, "result": [1, 2], "n": 3}) == {"a": 1, "b": 2, "n": 3}
        assert values({"data": 0, "result": {"a": 1, "b": 2}}) == {"a": 1, "b": 2}
        assert values({"data": 0, "result": [1, 2], "a": 5}) == {"a": 5, "b": 2}
        assert values({"data": 0}) == {}
        with pytest.raises(BackendError, match="is not the list of 2 outputs"):
            values({"data": 0, "result": np.zeros(2)})
    finally:
        await repository.close(0)
