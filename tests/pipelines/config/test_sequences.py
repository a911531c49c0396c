"""`[NODE.sequence]`: how it is read, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.errors import ConfigError
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.sequences.definition import Control, SequenceConfig, State
from penstock.pipelines.config.load import load

NET = "OnnxTensor"


def blocking(item: Any) -> Iterator[Any]:
    yield item


def problems(source: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return [str(problem) for problem in caught.value.problems]


def test_a_table_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        """
        [vad]
        backend = "OnnxTensor"
        model = "vad.onnx"
        [vad.sequence]
        strategy = "direct"
        max_sequences = "4"
        idle_timeout = 0.5
        controls = { start = "START", id = { input = "CORRID", dtype = "UINT64" } }
        state = [{ input = "h", output = "hn", dtype = "FP32", shape = [2, 128] }]
        """
    )
    assert load(path).nodes["vad"].sequence == SequenceConfig(
        "direct",
        4,
        None,
        0.5,
        (Control("start", "START"), Control("id", "CORRID", "uint64")),
        (State("h", "hn", "float32", (2, 128)),),
    )


@pytest.mark.parametrize(
    "source",
    [
        {"backend": "Identity", "sequence": {}},
        {"a": {"backend": "Identity", "sequence": {}}},
    ],
)
def test_an_empty_table_has_the_defaults(source: Any) -> None:
    (node,) = load(source).nodes.values()
    assert node.sequence == SequenceConfig()


def test_a_node_may_be_called_sequence() -> None:
    nodes = load({"sequence": {"backend": "Identity", "next": "b"}, "b": {}}).nodes
    assert [node.sequence for node in nodes.values()] == [None, None]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            {"a": {"backend": "Identity", "sequence": {"idle_timout": 1}}},
            "[a] sequence.idle_timout: there is no key 'idle_timout' here, did you mean",
        ),
        (
            {"a": {"backend": "Identity", "sequence": {"max_sequences": 0}}},
            "[a] sequence.max_sequences: found 0: input should be greater than or equal to 1",
        ),
        (
            {"a": {"backend": "Identity", "sequence": {"controls": {"start": "S"}}}},
            "[a] sequence.controls: Identity is no engine: only a model has inputs for it",
        ),
        (
            {"a": {"backend": NET, "model": "m", "sequence": {"state": [{"input": "h"}]}}},
            "[a] sequence.state.0.output: the table needs output, which is not given",
        ),
        (
            {
                "a": {
                    "backend": NET,
                    "model": "m.onnx",
                    "sequence": {
                        "controls": {"start": "h"},
                        "state": [{"input": "h", "output": "n"}],
                    },
                }
            },
            "[a] sequence: the input 'h' is named twice",
        ),
        (
            {"global": {"sequence": {}}, "a": {"backend": "Identity"}},
            "sequence: this is a table of one node: it can't be a default for all nodes",
        ),
        (
            {"a": {"backend": "Identity", "sequence": {}, "next": "b"}, "b": {"borrow_from": "a"}},
            "[b]: it uses the instances of 'a', which keeps states of sequences",
        ),
        (
            {"pipeline": {"loop": True}, "a": {"backend": "Identity", "sequence": {}}},
            "[a] sequence: a step would pass the node several times",
        ),
        (
            {
                "pipeline": {"expose": {"a": {}}},
                "a": {"backend": "Identity", "sequence": {}},
            },
            "[pipeline] expose.a: a node that keeps states of sequences can't be called by itself",
        ),
        (
            {"a": {"backend": "Jump", "jump": "b", "sequence": {}}, "b": {"backend": "Identity"}},
            "[a] sequence: Jump waits for other nodes and keeps no state",
        ),
        (
            {"a": {"backend": "blocking", "sequence": {}}},
            "[a] sequence: blocking is a generator that blocks",
        ),
    ],
)
def test_what_is_refused(source: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    register_backend("blocking", blocking)
    (problem,) = problems(source)
    assert problem.startswith(expected)
