"""Triton's ModelConfig for nodes with several groups of instances.

test_repository.py has the rest.
"""

from __future__ import annotations

from typing import Any

import pytest

from penstock.app.v2.models.description import config_of
from penstock.app.v2.models.model import Models
from penstock.app.v2.models.model_config import configure
from penstock.backends.errors import InvalidRequest
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository

TENSOR = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}


@pytest.fixture
def grouped() -> Any:
    """Return a pipeline with one instance for batches of up to 4 rows, and two for up to 8."""
    pipeline = {"name": "grouped", "inputs": {"x": TENSOR}, "outputs": {"y": TENSOR}}
    return load(
        {"pipeline": pipeline, "node": {"backend": "Identity", "max": "4&8", "instance_num": "1&2"}}
    )


def groups_of(config: Any) -> Any:
    return [(group.max, group.instances) for group in config.nodes["node"].instance_groups]


async def test_the_reported_configuration_changes_no_group(grouped: Any) -> None:
    repository = Repository([grouped])
    await repository.start()
    try:
        reported = config_of(Models(repository).get("grouped"))
    finally:
        await repository.close(0)
    assert reported["max_batch_size"] == 8 and reported["instance_group"][0]["count"] == 3
    assert groups_of(configure(grouped, reported)) == [(4, 1), (8, 2)]


@pytest.mark.parametrize(
    ("bound", "expected"), [(16, [4, 16]), (8, [4, 8]), (6, [4, 6]), (2, [2, 2])]
)
def test_the_largest_group_has_the_bound(grouped: Any, bound: int, expected: Any) -> None:
    assert [
        most for most, _ in groups_of(configure(grouped, {"max_batch_size": bound}))
    ] == expected


def policy(**entries: Any) -> Any:
    return {"dynamic_batching": {"default_queue_policy": entries}}


@pytest.mark.parametrize(
    ("group", "devices"),
    [
        ({"kind": "KIND_CPU"}, ("cpu",)),
        ({"kind": "KIND_GPU"}, ("cuda:0",)),
        ({"kind": "KIND_AUTO", "gpus": []}, ("cuda:0",)),
        ({"gpus": [1, 2]}, ("cuda:1", "cuda:2")),
        ({"kind": "KIND_GPU", "gpus": [3]}, ("cuda:3",)),
    ],
)
def test_a_group_sets_the_devices_of_its_instances(group: Any, devices: Any) -> None:
    config = load({"pipeline": {"name": "p"}, "node": {"backend": "Identity", "device": "cuda:0"}})
    assert configure(config, {"instance_group": [group]}).nodes["node"].devices == devices


@pytest.mark.parametrize(
    ("wanted", "key", "most"),
    [
        (lambda number: {"max_batch_size": number}, "max_batch_size", 2**31 - 1),
        (lambda number: {"instance_group": [{"count": number}]}, "count", 1024),
        (lambda number: {"instance_group": [{"kind": "KIND_GPU", "gpus": [number]}]}, "gpus", 1023),
        (
            lambda number: {"dynamic_batching": {"max_queue_delay_microseconds": number}},
            "max_queue_delay_microseconds",
            2**53,
        ),
        (
            lambda number: {
                "dynamic_batching": {"priority_levels": number, "default_priority_level": 1}
            },
            "priority_levels",
            1024,
        ),
        (
            lambda number: {
                "dynamic_batching": {"priority_levels": 1024, "default_priority_level": number}
            },
            "default_priority_level",
            1024,
        ),
        (lambda number: policy(max_queue_size=number), "max_queue_size", 2**31 - 1),
        (
            lambda number: policy(default_timeout_microseconds=number),
            "default_timeout_microseconds",
            2**53,
        ),
    ],
)
def test_numbers_have_bounds(wanted: Any, key: str, most: int) -> None:
    config = load({"pipeline": {"name": "p"}, "node": {"backend": "Identity", "max": 4}})
    for number in (most, str(most)):
        assert configure(config, wanted(number)) != config
    wrong: list[Any] = [most + 1, str(most + 1), -1, "-1", 1.0, True, "1" * 20, "x"]
    for number in wrong:
        with pytest.raises(
            InvalidRequest, match=f"'{key}' must be a whole number from 0 to {most}"
        ):
            configure(config, wanted(number))


def test_what_dynamic_batching_leaves_out_stays() -> None:
    node = {
        "backend": "Identity",
        "batching_timeout": 3,
        "priority_levels": 4,
        "default_priority": 3,
    }
    config = load({"pipeline": {"name": "p"}, "node": node})

    def changed(**fields: Any) -> Any:
        made = configure(config, {"dynamic_batching": fields}).nodes["node"]
        return made.batching_timeout, made.priority_levels, made.default_priority

    assert changed() == changed(default_queue_policy={"max_queue_size": 5}) == (3, 4, 3)
    assert changed(max_queue_delay_microseconds=500) == (0.5, 4, 3)
    assert changed(max_queue_delay_microseconds=0) == (0, 4, 3)
    assert changed(default_priority_level=1) == (3, 4, 1)
    assert changed(priority_levels=5) == (3, 5, 3)
    assert changed(priority_levels=0) == (3, 0, 0)
    with pytest.raises(InvalidRequest, match="'default_priority_level' must be from 1 to 2"):
        changed(priority_levels=2)


def test_dynamic_batching_is_of_the_entry_node() -> None:
    """That is not always the first node: a Jump leads to another root."""
    config = load(
        {
            "pipeline": {"name": "p"},
            "far": {"backend": "Identity"},
            "go": {"backend": "Jump", "jump": "far"},
        }
    )
    nodes = configure(
        config, {"dynamic_batching": {"priority_levels": 2, "default_priority_level": 1}}
    ).nodes
    assert (nodes["far"].priority_levels, nodes["go"].priority_levels) == (0, 2)
    several = load(
        {
            "pipeline": {"name": "p"},
            "a": {"backend": "Identity"},
            "b": {"backend": "Identity"},
        }
    )
    assert configure(several, policy(max_queue_size=3)).queue_size == 3
    with pytest.raises(InvalidRequest, match="'max_queue_delay_microseconds' is of the entry node"):
        configure(several, {"dynamic_batching": {"max_queue_delay_microseconds": 1}})


@pytest.mark.parametrize(
    ("group", "instances"),
    [({}, 4), ({"kind": "KIND_CPU"}, 4), ({"gpus": [1]}, 2), ({"gpus": [1], "count": 3}, 3)],
)
def test_a_group_without_a_count_keeps_its_instances(group: Any, instances: int) -> None:
    node = {"backend": "Identity", "device": "cuda:0,cuda:2", "instance_num": 4}
    config = load({"pipeline": {"name": "p"}, "node": node})
    made = configure(config, {"instance_group": [group]}).nodes["node"]
    assert made.instance_groups[0].instances == instances


def test_a_group_must_name_one_of_several_nodes() -> None:
    config = load(
        {
            "pipeline": {"name": "p"},
            "a": {"backend": "Identity", "next": "b"},
            "b": {"backend": "Identity"},
        }
    )
    nodes = configure(config, {"instance_group": [{"name": "b", "count": 3}]}).nodes
    assert [nodes[name].instance_groups[0].instances for name in "ab"] == [1, 3]
    for group in ({"count": 3}, {"name": "c", "count": 3}):
        with pytest.raises(InvalidRequest, match="must have the 'name' of a node, one of a, b"):
            configure(config, {"instance_group": [group]})


def test_the_number_of_groups_can_not_change(grouped: Any) -> None:
    with pytest.raises(
        InvalidRequest,
        match="node 'node' has several groups of instances, which an 'instance_group' can't change",
    ):
        configure(grouped, {"instance_group": [{"count": 4}]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"dynamic_batching": {"nonsense": 1}}, "'nonsense' of 'dynamic_batching' can't be set"),
        ({"dynamic_batching": {"preserve_ordering": True}}, "'preserve_ordering' of 'dynamic_"),
        ({"dynamic_batching": {"preserve_ordering": 0}}, "can't be changed, expected false"),
        ({"dynamic_batching": {"nonsense": None}}, "'nonsense' of 'dynamic_batching' can't be set"),
        ({"dynamic_batching": {"preferred_batch_size": False}}, "'preferred_batch_size' of 'dyna"),
        ({"dynamic_batching": {"default_queue_policy": []}}, "is a JSON array, expected an obj"),
        (policy(max_queue_size=False), "'max_queue_size' must be a whole number"),
        (policy(default_timeout_microseconds=""), "'default_timeout_microseconds' must be a whole"),
        ({"instance_group": [{"count": False}]}, "'count' must be a whole number"),
        ({"instance_group": [{"kind": 0}]}, "'kind' of an instance group must be one of"),
        ({"instance_group": [{"gpus": 0}]}, "'gpus' of an instance group must be an array"),
        ({"instance_group": [{"name": 7}]}, "'name' of an instance group is a JSON number"),
        ({"instance_group": [{"count": 3}, {"count": 3}]}, "two 'instance_group' are of node 'nod"),
        ({"version_policy": []}, "'version_policy' is a JSON array, expected an object"),
        ({"version_policy": {"nonsense": None}}, "'nonsense' of 'version_policy' can't be set"),
        (
            {"model_transaction_policy": {"decoupled": True}},
            "'decoupled' of 'model_transaction_policy' can't be changed, expected false",
        ),
        (
            {"model_transaction_policy": {"x": 1}},
            "'x' of 'model_transaction_policy' can't be set here, expected decoupled",
        ),
        ({"optimization": 0}, "'optimization' is a JSON number, expected an object"),
        ({"dynamic_batching": {"preferred_batch_size": [3]}}, "'preferred_batch_size' of 'dynami"),
        ({"dynamic_batching": {"preferred_batch_size": 4}}, "'preferred_batch_size' of 'dynami"),
        (
            {"dynamic_batching": {"priority_queue_policy": {"1": {"max_queue_size": 1}}}},
            "'priority_queue_policy' of 'dynamic_batching' can't be changed",
        ),
        (policy(nonsense=1), "'nonsense' of 'default_queue_policy' can't be set here"),
        (
            policy(timeout_action="DELAY"),
            "'timeout_action' .*can't be changed, expected \"REJECT\"",
        ),
        (policy(allow_timeout_override=False), "'allow_timeout_override' .*expected true"),
        ({"instance_group": [{"nonsense": 1}]}, "'nonsense' of 'instance_group' can't be set here"),
        ({"instance_group": [{"passive": True}]}, "'passive' of 'instance_group' can't be changed"),
        ({"instance_group": [{"rate_limiter": {}}]}, "'rate_limiter' of 'instance_group'"),
        ({"version_policy": {"all": {}}}, "'all' of 'version_policy' can't be set here"),
        (
            {"version_policy": {"latest": {"num_versions": 2}}},
            "'latest' of 'version_policy' can't be changed, expected {\"num_versions\": 1}",
        ),
        ({"optimization": {"graph": {"level": 1}}}, "'graph' of 'optimization' can't be set here"),
        ({"optimization": {"eager_batching": True}}, "'eager_batching' of 'optimization' can't"),
    ],
)
def test_no_field_is_accepted_and_ignored(grouped: Any, override: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        configure(grouped, override, 8)


def test_levels_that_have_queue_policies_stay() -> None:
    policies = {"default": {"max_queue_size": 3}, "2": {"timeout": 0.5, "on_timeout": "delay"}}
    node = {"backend": "Identity", "priority_levels": 2, "queue_policies": policies}
    config = load({"node": node})
    batching = {"priority_levels": 2, "max_queue_delay_microseconds": 1000}
    changed = configure(config, {"dynamic_batching": batching}).nodes["node"]
    assert (changed.batching_timeout, changed.queue_policies) == (
        1.0,
        config.nodes["node"].queue_policies,
    )
    with pytest.raises(InvalidRequest, match="'priority_levels' of node 'node' can't be changed"):
        configure(config, {"dynamic_batching": {"priority_levels": 3}})


def test_fields_with_the_values_that_hold_anyway_are_accepted(grouped: Any) -> None:
    fixed = {
        "preserve_ordering": False,
        "priority_queue_policy": {},
        "default_queue_policy": {"timeout_action": "REJECT", "allow_timeout_override": True},
    }
    for sizes in ([], [8], [4]):  # the size that was reported, and the one that is asked for
        batching = {"preferred_batch_size": sizes, **fixed}
        override = {"max_batch_size": 4, "dynamic_batching": batching, "optimization": None}
        assert groups_of(configure(grouped, override, 8)) == [(4, 1), (4, 2)]
