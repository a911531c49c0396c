"""What a Triton model is called as a node."""

from pathlib import Path

import pytest

from penstock.backends.item import RESERVED_KEYS
from penstock.pipelines.config.load import load
from penstock.pipelines.config.tables import PARAMETER_TABLES, TABLE_KEYS
from penstock.pipelines.triton.messages import new_config
from penstock.pipelines.triton.model import TritonModel


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED_KEYS | PARAMETER_TABLES | TABLE_KEYS), "_x", "a.b", "a b", "ü"]
)
def test_a_model_may_have_a_name_that_no_node_has(name: str) -> None:
    config = new_config()
    config.name = name
    node = TritonModel(Path(name), "1", config, config, "config.pbtxt").node
    assert [*load({node: {"backend": "Identity"}}).nodes] == [node]
