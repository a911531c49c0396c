"""Pipelines under overload, in virtual time: a short form of `scripts/overload_sim`.

The bounds are those that docs/explanation/scheduling.md states, with some room for other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import MODELS, Graph, of, refused
from virtual import Model, Simulation

RESNET, TEN_MS, LINEAR, HALF_SECOND = MODELS[1], MODELS[3], MODELS[4], MODELS[5]
SOME = pytest.mark.parametrize(
    "model", [RESNET, LINEAR, HALF_SECOND], ids=lambda model: model.name.split(":")[0]
)


@SOME
@pytest.mark.parametrize("times", [2, 5])
def test_overload(model: Model, times: float) -> None:
    figures = scenarios.overload(model, times)
    assert figures["good"] >= 0.9
    assert figures["after"] <= 1.25  # one client, soon after


@pytest.mark.parametrize("model", [RESNET, TEN_MS], ids=lambda model: model.name.split(":")[0])
def test_overload_right_after_closed_loops(model: Model) -> None:
    """What left before does not make room for what is too much."""
    assert scenarios.overload(model, 2, loops=64)["good"] >= 0.95


@SOME
def test_a_burst_into_an_idle_pipeline_is_served(model: Model) -> None:
    assert scenarios.burst(model) == 0


@pytest.mark.parametrize("number", [64, 512])
def test_closed_loops_are_never_refused(number: int) -> None:
    assert scenarios.loops(RESNET, number) == 0


@SOME
def test_a_flood_leaves_another_client_its_share(model: Model) -> None:
    assert scenarios.fair(model) >= 0.9


@pytest.mark.parametrize(
    ("flood", "some"), [(None, 0.6), (0.6, 0.6), (0.9, 0.9), (5, None), (20, None), (20, 0.6)]
)
def test_deadlines_leave_another_client_its_share(flood: float | None, some: float | None) -> None:
    assert scenarios.fair(RESNET, flood, some) >= 0.9


def test_the_loops_of_one_client_do_not_make_another_one_wait() -> None:
    assert scenarios.fair_to_loops(RESNET) >= 0.95


@SOME
def test_a_flood_of_a_lower_level_costs_a_higher_one_nothing(model: Model) -> None:
    refusals, in_time = scenarios.levels(model)
    assert refusals == 0
    assert in_time >= 0.95


@SOME
def test_deadlines_are_kept(model: Model) -> None:
    assert scenarios.deadlines(model) >= 0.9


@pytest.mark.parametrize("timeout", [1.2, 3.0])
def test_too_much_with_long_deadlines_beside_others_without(timeout: float) -> None:
    assert scenarios.patient(TEN_MS, timeout) >= 0.9


def test_patient_workers_are_not_refused() -> None:
    assert scenarios.loops(HALF_SECOND, 200, deadline=120, timeout=600) == 0
    assert scenarios.loops(HALF_SECOND, 200, timeout=600, max_wait="none") == 0


def test_below_capacity_nearly_nothing_is_refused() -> None:
    assert scenarios.light(TEN_MS, 0.8) == 0
    assert scenarios.light(RESNET, 0.95) <= 0.02


def test_what_is_refused_without_the_rule_is_late() -> None:
    """So the other tests say something: the same load, with first come, first served."""
    assert scenarios.overload(RESNET, 5, max_wait="none")["good"] < 0.5


@pytest.mark.parametrize(("parts", "times"), [("log", 2), ("log", 5), ("few", 2)])
def test_a_graph_that_splits_items(parts: str, times: float) -> None:
    figures = scenarios.graph_overload(parts, times)
    assert figures["parts"] >= 0.9


def test_loops_through_a_graph_are_never_refused() -> None:
    assert scenarios.graph_loops("log", 64) == 0


# invariants

models = st.builds(
    Model,
    st.just("any"),
    st.floats(0.002, 0.5),
    st.floats(0.0005, 0.1),
    st.integers(1, 32),
    st.integers(1, 4),
)


@contextmanager
def checked(simulation: Simulation) -> Iterator[Simulation]:
    """Check after the load that every request has left."""
    with simulation:
        yield simulation
        simulation.run(simulation.now + 100)
        assert all(request.how for request in simulation.requests)
        pressure = simulation.pipeline._admission.pressure
        for door in pressure.doors:
            assert (door.requests, door.rows, door.late, door.patient, door.named) == (0,) * 5
            assert door.clients == {}
        assert pressure.patient == 0


@settings(max_examples=25, deadline=None)
@given(models, st.integers(1, 200), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(1, 4))
def test_a_lone_closed_loop_is_never_refused(
    model: Model, number: int, spread: float, pause: float, rows: int
) -> None:
    rows = min(rows, model.max)
    number = max(1, min(number, int(20 * model.capacity / rows)))  # 20 s: answered in time
    with checked(Simulation.of(model)) as simulation:
        begin = scenarios.warm(simulation, model)
        simulation.closed_loops(
            number,
            begin,
            begin + 20,
            spread=spread,
            pause=pause,
            make=lambda: {"data": 1, "request_size": rows},
        )
        simulation.run(begin + 20)
        assert simulation.pipeline.refused == {"queue_full": 0, "overloaded": 0}


@settings(max_examples=25, deadline=None)
@given(
    models,
    st.floats(0.2, 6),
    st.floats(0.1, 3),
    st.floats(0.3, 20),
    st.sampled_from([0, 3]),
    st.sampled_from([0.3, 2.0, 50.0]),
)
def test_whatever_comes_the_counts_hold(
    model: Model, flood: float, some: float, timeout: float, levels: int, patience: float
) -> None:
    tables = {"pipeline": {}, "node": {**model.keys, "priority_levels": levels}}
    flood, some = (min(times, 300 / model.capacity) for times in (flood, some))
    with checked(Simulation(tables, {"node": model})) as simulation:
        begin = scenarios.warm(simulation, model)
        end = begin + 8
        rate = model.capacity
        simulation.poisson(flood * rate, begin, end, client="flood", patience=patience)
        simulation.poisson(some * rate, begin, end, priority=1, patience=5)
        simulation.poisson(0.3 * rate, begin, end, client="due", timeout=timeout)
        simulation.closed_loops(5, begin, end, client="loops")
        while simulation.now < end:
            simulation.run(simulation.now + 0.05)
            for door in simulation.pipeline._admission.pressure.doors:
                assert 0 <= door.n <= door.rows
                assert min(door.late, door.patient, door.requests) >= 0
                assert sum(door.clients.values()) == door.named <= door.rows


@settings(max_examples=15, deadline=None)
@given(models, st.floats(0.5, 6), st.floats(0.05, 0.6))
def test_a_higher_level_is_never_refused_for_lower_ones(
    model: Model, flood: float, some: float
) -> None:
    tables = {"pipeline": {}, "node": {**model.keys, "priority_levels": 2}}
    flood = min(flood, 300 / model.capacity)
    with checked(Simulation(tables, {"node": model})) as simulation:
        begin = scenarios.warm(simulation, model)
        simulation.poisson(
            flood * model.capacity, begin, begin + 8, client="low", priority=2, patience=5
        )
        simulation.poisson(some * model.capacity, begin, begin + 8, client="high", priority=1)
        simulation.run(begin + 8)
        assert refused(of(simulation, "high")) == 0


def test_the_capacity_of_the_graph() -> None:
    graph = Graph("log")
    assert graph.capacity == pytest.approx(33, abs=2)
