"""`dynamic_batching` of a Triton model: what it becomes, and who shares a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.pipelines.triton.reading import parse_config
from penstock.pipelines.triton.translation.translate import translate

MODEL = """
backend: "python"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


def tables_of(tmp_path: Path, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of the pipeline and of the node that a configuration becomes."""
    (tmp_path / "rank" / "1").mkdir(parents=True)
    (tmp_path / "rank" / "1" / "model.py").touch()
    tables = translate(parse_config(MODEL + text), tmp_path / "rank", "1")
    assert not tables.problems
    return tables.pipeline, tables.nodes["rank"]


@pytest.mark.parametrize(
    ("text", "combine"),
    [("", False), ("dynamic_batching {}", True), ("sequence_batching {}", True)],
)
def test_requests_share_batches_only_where_triton_batches_them(
    tmp_path: Path, text: str, combine: bool
) -> None:
    _, node = tables_of(tmp_path, text)
    assert node.get("combine", True) is combine


def test_one_queue_is_bounded_as_that_of_the_pipeline(tmp_path: Path) -> None:
    pipeline, node = tables_of(
        tmp_path,
        """dynamic_batching {
          max_queue_delay_microseconds: 2500
          preserve_ordering: true
          preferred_batch_size: [ 4, 8 ]
          default_queue_policy { max_queue_size: 7 default_timeout_microseconds: 500000 }
        }""",
    )
    assert (pipeline["queue_size"], pipeline["queue_timeout"]) == (7, 0.5)
    assert node["batching_timeout"] == 2.5
    assert "queue_policies" not in node


def test_each_priority_level_has_its_policy(tmp_path: Path) -> None:
    pipeline, node = tables_of(
        tmp_path,
        """dynamic_batching {
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { max_queue_size: 7 }
          priority_queue_policy {
            key: 3
            value { timeout_action: DELAY default_timeout_microseconds: 1000000 }
          }
        }""",
    )
    assert (node["priority_levels"], node["default_priority"]) == (3, 2)
    assert node["queue_policies"] == {
        "default": {"max_queue_size": 7},
        "3": {"timeout": 1.0, "on_timeout": "delay"},
    }
    assert "queue_size" not in pipeline


def test_late_requests_are_delayed_without_priorities_too(tmp_path: Path) -> None:
    _, node = tables_of(
        tmp_path,
        """dynamic_batching { default_queue_policy {
          timeout_action: DELAY default_timeout_microseconds: 2000 allow_timeout_override: true
        } }""",
    )
    assert node["queue_policies"] == {"default": {"timeout": 0.002, "on_timeout": "delay"}}
