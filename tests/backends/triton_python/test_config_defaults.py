"""What a file leaves out of a model's configuration is what protobuf prints for it."""

from __future__ import annotations

import pytest

from penstock.backends.triton_python.config_defaults import with_defaults, without_defaults
from penstock.pipelines.triton.messages import as_json
from penstock.pipelines.triton.reading import parse_config

EVERYTHING = """
name: "m" backend: "python" max_batch_size: 4
input [ { name: "a" data_type: TYPE_FP32 dims: [ 2 ] optional: true }, { reshape { } } ]
output [ { name: "b" data_type: TYPE_STRING dims: [ -1 ] label_filename: "labels.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU }, { gpus: [ 0, 1 ] } ]
parameters { key: "letters" value { string_value: "abc" } }
parameters { key: "empty" value { } }
model_warmup [ { name: "w" batch_size: 1 inputs { key: "a" value { dims: 2 zero_data: true } } } ]
optimization { priority: PRIORITY_MAX input_pinned_memory { enable: false } }
model_transaction_policy { decoupled: true }
response_cache { }
"""
CONFIGS = [
    'name: "m"',
    EVERYTHING,
    """
    dynamic_batching {
      preferred_batch_size: [ 4 ] priority_levels: 2
      default_queue_policy { max_queue_size: 3 }
      priority_queue_policy { key: 1 value { timeout_action: DELAY } }
    }
    """,
    "dynamic_batching { } model_transaction_policy { } optimization { }",
    """
    sequence_batching {
      direct { }
      control_input [ { name: "S" control [ { int32_false_true: [ 0, 1 ] }, { kind: 1 } ] } ]
      state [ { input_name: "i" initial_state: { zero_data: true } }, { dims: [ 3 ] } ]
    }
    """,
    "sequence_batching { oldest { max_candidate_sequences: 4 } iterative_sequence: true }",
]


@pytest.mark.parametrize("text", CONFIGS)
def test_defaults_come_back(text: str) -> None:
    whole = as_json(parse_config(text.replace("kind: 1", "kind: CONTROL_SEQUENCE_READY"), "config"))
    short = without_defaults(whole)
    assert with_defaults(short) == whole == with_defaults(whole)
    assert without_defaults(short) == short


def test_what_has_its_default_is_left_out() -> None:
    short = without_defaults(as_json(parse_config(EVERYTHING, "config.pbtxt")))
    assert short["input"][0] == {
        "name": "a",
        "data_type": "TYPE_FP32",
        "dims": [2],
        "optional": True,
    }
    assert short["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}, {"gpus": [0, 1]}]
    assert short["optimization"]["priority"] == "PRIORITY_MAX"
    assert "runtime" not in short and "batch_input" not in short
    assert with_defaults({}) == {}
