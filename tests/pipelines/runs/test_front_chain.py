"""Which nodes may run in front processes."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.backends.errors import ConfigError
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.runs.front_chain import front_nodes

DECODE: dict[str, Any] = {"backend": "DecodeMat", "next": "resize"}
RESIZE: dict[str, Any] = {"backend": "S[ResizeMat,cvtColorMat]", "resize_h": 8, "resize_w": 8}
RESIZE |= {"color": "rgb", "next": "model"}
MODEL: dict[str, Any] = {"backend": "Identity"}
CHAIN: dict[str, Any] = {"decode": DECODE, "resize": RESIZE, "model": MODEL}


def nodes_of(**changes: Any) -> tuple[str, ...]:
    """Return the front nodes of the chain with other keys of some nodes."""
    tables = {name: {**CHAIN.get(name, {}), **keys} for name, keys in {**CHAIN, **changes}.items()}
    return front_nodes(load(tables))


def test_nodes_of_image_backends_run_in_fronts() -> None:
    assert nodes_of() == ("decode", "resize")


@pytest.mark.parametrize(
    "keys",
    [
        {"backend": "SaveMat", "save_dir": "."},
        {"backend": "PadToWidestTensor"},
        {"backend": "Identity"},
        {"backend": "S[Tensor2Mat,Identity]"},
        {"backend": "DecodeTensor"},
        {"backend": "Python[operator:neg]"},
    ],
)
def test_other_backends_do_not_unless_the_file_says_so(keys: dict[str, Any]) -> None:
    tables = {"first": {"backend": "Tensor2Mat", "next": "other"}, "other": keys}
    assert front_nodes(load(tables)) == ("first",)
    tables["other"] = {**keys, "front": True}
    assert front_nodes(load(tables)) == ("first", "other")


def test_a_file_may_say_it_either_way() -> None:
    assert nodes_of(model={"front": True}) == ("decode", "resize", "model")
    assert nodes_of(resize={"front": False}) == ("decode",)
    assert nodes_of(decode={"front": False}) == ()


def test_a_gpu_for_all_nodes_is_for_those_that_can_use_it() -> None:
    tables = {"global": {"device": "cuda:0"}, **CHAIN, "model": {**MODEL, "device": "cpu"}}
    assert front_nodes(load(tables)) == ("decode", "resize")


@pytest.mark.parametrize(
    "pipeline",
    [
        {"cache": True},
        {"loop": True},
        {"inputs": {"data": {"kind": "json"}}},
        {"inputs": {"data": {"kind": "image"}, "more": {"kind": "text"}}},
        {"outputs": {"data": {"kind": "bytes"}}},
    ],
)
def test_some_pipelines_have_none(pipeline: dict[str, Any]) -> None:
    assert nodes_of(pipeline=pipeline) == ()


@pytest.mark.parametrize("name", ["data", "picture"])
def test_the_one_input_may_have_any_name(name: str) -> None:
    assert nodes_of(pipeline={"inputs": {name: {"kind": "bytes"}}}) == ("decode", "resize")


def test_a_node_with_several_roots_before_it_has_none() -> None:
    assert front_nodes(load({"a": {"backend": "DecodeMat"}, "b": {"backend": "DecodeMat"}})) == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # A branch, and what a later `map` reads, end the chain behind the node.
        ({"decode": {"next": ["resize", "model"]}, "model": {"map": "resize[result:data]"}}, 1),
        ({"model": {"map": "decode[result:data]"}}, 1),
        ({"model": {"map": "resize[result:data]"}}, 2),
        # What is not the result does not cross, so a node whose `data` is read is no front node.
        ({"model": {"map": "resize[data:data]"}}, 1),
        ({"model": {"map": "decode[data:data]"}}, 0),
        ({"resize": {"filter": "or"}}, 0),
        ({"model": {"filter": "Skip"}}, 1),
        ({"model": {"borrow_from": "resize"}}, 1),
        ({"resize": {"executor": "process"}}, 1),
    ],
)
def test_the_chain_ends_where_more_than_the_result_goes_on(
    changes: dict[str, Any], expected: int
) -> None:
    if "borrow_from" in changes.get("model", {}):
        changes = {
            "model": {"backend": "ResizeMat", "resize_h": 8, "resize_w": 8, **changes["model"]}
        }
    assert nodes_of(**changes) == ("decode", "resize")[:expected]


@pytest.mark.usefixtures("own_registry")
def test_a_backend_that_only_this_process_knows_stays_here() -> None:
    register_backend("Mine", lambda data: data)
    assert nodes_of(resize={"backend": "S[ResizeMat,cvtColorMat,Mine]", "front": True}) == (
        "decode",
    )


@pytest.mark.parametrize(
    ("keys", "obstacle"),
    [
        ({"executor": "process"}, "processes of its own"),
        ({"device": "cuda:0"}, "the model process has the GPUs"),
        ({"sequence": {}}, "states of sequences"),
        ({"backend": "Jump[last]"}, "waits for other nodes"),
    ],
)
def test_front_is_an_error_where_it_can_have_no_effect(keys: dict[str, Any], obstacle: str) -> None:
    tables = {
        "model": {"backend": "Python[operator:neg]", "front": True, **keys},
        "last": {"backend": "Identity"},
    }
    with pytest.raises(ConfigError, match=rf"\[model\] front: .*{obstacle}.*expected false"):
        load(tables)


def test_a_default_for_all_nodes_leaves_composites_alone() -> None:
    tables = {
        "global": {"front": True},
        "first": {"backend": "Jump[last]"},
        "last": {"backend": "Identity"},
    }
    config = load(tables)
    assert [node.front for node in config.nodes.values()] == [False, True]
