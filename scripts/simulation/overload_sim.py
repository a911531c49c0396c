"""Run every scenario, and print the table. `scripts/overload_sim` starts it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import scenarios
from scenarios import MODELS
from virtual import Model

POLICIES: dict[str, dict[str, Any]] = {
    "first come, first served": {"max_wait": "none"},
    "the rule": {},
}
TOO_LONG_SECONDS = 25.0
"""Closed loops whose requests would wait for longer are left out: they would expire."""
FAST = 1000
"""Models that answer more rows per second are left out where a scenario lasts for minutes."""

Scenario = Callable[[Model, dict[str, Any]], float | None]


def loops(number: int, **options: Any) -> Scenario:
    def scenario(model: Model, keys: dict[str, Any]) -> float | None:
        if number / model.capacity > TOO_LONG_SECONDS:
            return None
        return scenarios.loops(model, number, **options, **keys)

    return scenario


def slow(scenario: Callable[..., float]) -> Scenario:
    return lambda model, keys: scenario(model, **keys) if model.capacity < FAST else None


SCENARIOS: dict[str, Scenario] = {
    "in time at 2 x": lambda m, keys: scenarios.overload(m, 2, **keys)["good"],
    "in time at 5 x": lambda m, keys: scenarios.overload(m, 5, **keys)["good"],
    "in time at 2 x, right after 64 closed loops": lambda m, keys: scenarios.overload(
        m, 2, loops=64, **keys
    )["good"],
    "one client after 5 x, to its time alone": lambda m, keys: scenarios.overload(m, 5, **keys)[
        "after"
    ],
    "burst of 10 x max: not served": lambda m, keys: scenarios.burst(m, **keys),
    "bursts at 0.5 x: refused": slow(scenarios.bursts),
    "64 closed loops: refusals": loops(64),
    "512 closed loops: refusals": loops(512),
    "1000 closed loops: refusals": loops(1000),
    "512 started over 3 s: refusals": loops(512, spread=3.0),
    "0.1 x beside 5 x: in time": lambda m, keys: scenarios.fair(m, **keys),
    "0.1 x beside 512 loops: in time": lambda m, keys: scenarios.fair_to_loops(m, **keys),
    "priority 1 beside a flood at 3: refused": lambda m, keys: scenarios.levels(m, **keys)[0],
    "priority 1 beside a flood at 3: in time": lambda m, keys: scenarios.levels(m, **keys)[1],
    "deadlines at 2 x: kept": lambda m, keys: scenarios.deadlines(m, **keys),
    "deadlines of 3 targets at 2 x, beside 0.3 x without: in time": lambda m, keys: (
        scenarios.patient(m, 1.5 * m.in_time, **keys)
    ),
    "200 patient workers: refusals": lambda m, keys: scenarios.loops(
        m, 200, deadline=max(30.0, 400 / m.capacity), timeout=600, **keys
    ),
    "0.8 x: refused": slow(lambda m, **keys: scenarios.light(m, 0.8, **keys)),
    "0.95 x: refused": slow(lambda m, **keys: scenarios.light(m, 0.95, **keys)),
}
GRAPH_SCENARIOS: dict[str, Callable[[str, dict[str, Any]], float]] = {
    "graph at 2 x: parts in time": lambda d, keys: scenarios.graph_overload(d, 2, **keys)["parts"],
    "graph at 5 x: parts in time": lambda d, keys: scenarios.graph_overload(d, 5, **keys)["parts"],
    "graph, 64 closed loops: refusals": lambda d, keys: scenarios.graph_loops(d, 64, **keys),
    "graph, 512 closed loops: refusals": lambda d, keys: scenarios.graph_loops(d, 512, **keys),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/overload_sim", description=__doc__)
    numbers = "; ".join(f"{number}: {model.name}" for number, model in enumerate(MODELS))
    parser.add_argument("models", nargs="*", type=int, metavar="MODEL", help=numbers)
    chosen = [MODELS[number] for number in parser.parse_args().models] or MODELS
    rows: dict[str, list[str]] = {}
    for policy, keys in POLICIES.items():
        for name, scenario in SCENARIOS.items():
            say(f"{policy}: {name}")
            figures = [scenario(model, keys) for model in chosen]
            rows.setdefault(name, []).append(extent(figures))
        for name, graph_scenario in GRAPH_SCENARIOS.items():
            say(f"{policy}: {name}")
            figures = [graph_scenario(dist, keys) for dist in ("log", "few")]
            rows.setdefault(name, []).append(extent(figures))
    print(f"| worst and best of {len(chosen)} models | {' | '.join(POLICIES)} |")
    print("|---|" + "---|" * len(POLICIES))
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def extent(figures: Sequence[float | None]) -> str:
    known = sorted(figure for figure in figures if figure is not None)
    if not known:
        return "–"
    low, high = (f"{figure:.3g}" for figure in (known[0], known[-1]))
    return low if low == high else f"{low} … {high}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
