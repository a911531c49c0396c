"""`device = "all"` and `device = "any"`."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.backends.errors import ConfigError
from penstock.pipelines.config import devices
from penstock.pipelines.config.load import load


@pytest.fixture(params=[3])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(devices, "gpu_count", lambda: count)
    return count


def placed(**keys: Any) -> tuple[tuple[str, ...], list[int]]:
    node = load({"net": {"backend": "Identity", **keys}}).nodes["net"]
    return node.devices, [group.instances for group in node.instance_groups]


THREE = ("cuda:0", "cuda:1", "cuda:2")


@pytest.mark.usefixtures("gpus")
def test_all_has_the_instances_on_each_gpu() -> None:
    assert placed(device="all") == (THREE, [3])
    assert placed(device="all", instance_num=2) == (THREE, [6])
    assert placed(device="all", instance_num="2&1", max="4&1") == (THREE, [6, 3])


@pytest.mark.usefixtures("gpus")
def test_any_has_the_instances_on_some_of_them() -> None:
    assert placed(device="any") == (THREE, [1])
    assert placed(device="any", instance_num=2) == (THREE, [2])


@pytest.mark.usefixtures("gpus")
def test_nodes_on_the_event_loop_have_no_gpu() -> None:
    with pytest.raises(ConfigError, match="a backend that waits for a GPU"):
        placed(device="all", executor="loop")


@pytest.mark.parametrize("device", ["all,cpu", "every", "all any"])
def test_a_device_that_is_none(device: str) -> None:
    with pytest.raises(ConfigError, match="expected cpu, cuda:0, the number of a GPU, all or any"):
        placed(device=device)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("device", ["all", "any"])
def test_without_a_gpu_the_engines_choose(device: str) -> None:
    config = load({"net": {"backend": "Identity", "device": device, "instance_num": 2}})
    assert config.nodes["net"].devices == ()
    assert config.nodes["net"].instance_groups[0].instances == 2
    assert config.warnings == (
        f'[net] device: found "{device}", but there is no GPU here: the engines choose their '
        "device",
    )
