"""Scenarios of overload, each with the figures that it is judged by."""

from __future__ import annotations

import math
import random
from typing import Any

from virtual import Model, Request, Simulation

from penstock.backends.item import Item

MODELS = (
    Model("1 ms x 32", 0.0007, 0.0003, 32, 1),
    Model("ResNet-18: 38 ms, 292 ms x 8, 2 executors", 0.002, 0.0362, 8, 2),
    Model("GPU: 21 ms, 84 ms x 64, 4 executors", 0.020, 0.001, 64, 4),
    Model("10 ms, 85 ms x 16", 0.005, 0.005, 16, 1),
    Model("linear: 20 ms, 1.2 s x 64", 0.002, 0.018, 64, 1),
    Model("0.5 s, 1.2 s x 8", 0.4, 0.1, 8, 1),
    Model("2.2 s, 5 s x 16", 2.0, 0.1875, 16, 1),
    Model("1.5 s, 5 s x 8, 8 executors", 1.0, 0.5, 8, 8),
)
REFUSED = ("overloaded", "queue_full")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


def share(requests: list[Request], in_time: float) -> float:
    """Return which part of the requests was answered in time."""
    return answered(requests, in_time) / max(1, len(requests))


def answered(requests: list[Request], in_time: float) -> int:
    return sum(request.how == "ok" and request.seconds <= in_time for request in requests)


def refused(requests: list[Request]) -> float:
    return sum(request.how in REFUSED for request in requests) / max(1, len(requests))


def of(simulation: Simulation, client: object) -> list[Request]:
    return [request for request in simulation.requests if request.client == client]


def warm(simulation: Simulation, model: Model) -> float:
    """Send eight single items, then wait until all is idle. Return the time."""
    seconds = model.seconds(1)
    begin = simulation.now
    for number in range(8):
        simulation.at(begin + number * (1.5 * seconds + 0.01), simulation.send, "warm")
    simulation.run(begin + 8 * (1.5 * seconds + 0.01) + 3 * seconds + 2)
    return simulation.now


def overload(
    model: Model, times: float, seconds: float = 10.0, *, loops: int = 0, **settings: Any
) -> dict[str, float]:
    """Offer `times` the capacity. A second after the end comes one client alone.

    Just before, so many closed `loops` run for six seconds, as in `scripts/bench overload`.
    """
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        if loops:
            simulation.closed_loops(loops, begin, begin + 6, client="loops")
            simulation.run(begin + 6)
            while simulation.pipeline.in_flight:
                simulation.run(simulation.now + 0.01)
            begin = simulation.now
        in_time = model.in_time
        seconds = max(seconds, 6 * in_time)
        end = begin + seconds
        simulation.poisson(times * model.capacity, begin, end, client="a", patience=5 * in_time)
        simulation.run(end)
        probe = end + max(1.0, 3 * model.seconds(model.max))
        probes = max(3.0, 10 * model.seconds(1))
        simulation.closed_loops(1, probe, probe + probes, spread=0, client="probe")
        simulation.run(probe + probes + 30)
        sent = of(simulation, "a")
        alone = [request.seconds for request in of(simulation, "probe") if request.how == "ok"]
        admitted = [request for request in sent if request.how not in REFUSED]
        return {
            "good": answered(sent, in_time) / (model.capacity * seconds),
            "late": 1 - share(admitted, in_time),
            "after": median(alone) / model.seconds(1),
        }


def burst(model: Model, **settings: Any) -> float:
    """Send 10 x max at once while all is idle. Return the part that was not answered."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        for _ in range(10 * model.max):
            simulation.at(begin, simulation.send, "a")
        simulation.run(begin + 30 * model.max / model.capacity + 60)
        sent = [request for request in of(simulation, "a") if request.how != "deadline_exceeded"]
        return sum(request.how != "ok" for request in sent) / max(1, len(sent))


def bursts(model: Model, **settings: Any) -> float:
    """Half of the capacity, and four bursts of 10 x max. Return the part that was refused."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        number = 10 * model.max
        period = max(5.0, 3 * number / model.capacity)
        simulation.poisson(model.capacity / 2, begin, begin + 4 * period, client="a")
        for time in range(4):
            for _ in range(number):
                simulation.at(begin + (time + 0.3) * period, simulation.send, "a")
        simulation.run(begin + 4 * period + 40)
        return refused(of(simulation, "a"))


def loops(
    model: Model, number: int, spread: float = 0.3, deadline: float | None = None, **settings: Any
) -> int:
    """Run closed loops of one client. Return how many requests were refused."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        seconds = 45.0 if model.capacity < 1000 else 8.0
        simulation.closed_loops(
            number, begin, begin + seconds, spread=spread, client="a", timeout=deadline
        )
        simulation.run(begin + seconds)
        return sum(request.how in REFUSED for request in of(simulation, "a"))


def fair(
    model: Model, flood: float | None = None, some: float | None = None, **settings: Any
) -> float:
    """Let one client send 5 x the capacity and another 0.1 x.

    `flood` and `some` are the seconds of their deadlines, if they name any. Return which part the
    second has in time.
    """
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        in_time = model.in_time
        end = begin + max(20.0, 6 * in_time)
        for client, times, deadline in (("a", 5, flood), ("b", 0.1, some)):
            simulation.poisson(
                times * model.capacity,
                begin,
                end,
                client=client,
                timeout=deadline,
                patience=5 * in_time,
            )
        simulation.run(end + 60)
        return share(of(simulation, "b"), in_time)


def fair_to_loops(model: Model, **settings: Any) -> float:
    """Let one client run 512 closed loops and another send 0.1 x the capacity."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        in_time = model.in_time
        end = begin + max(20.0, 6 * in_time)
        simulation.closed_loops(512, begin, end, client="a")
        simulation.poisson(0.1 * model.capacity, begin + 2, end, client="b", patience=5 * in_time)
        simulation.run(end + 60)
        return share(of(simulation, "b"), in_time)


def levels(model: Model, times: float = 5, **settings: Any) -> tuple[float, float]:
    """Flood priority 3, and send 0.5 x the capacity at priority 1.

    Return which part of the latter was refused, and which was in time.
    """
    tables = {
        "pipeline": settings,
        "node": {**model.keys, "priority_levels": 3},
    }
    with Simulation(tables, {"node": model}) as simulation:
        begin = warm(simulation, model)
        in_time = model.in_time
        end = begin + max(20.0, 6 * in_time)
        simulation.poisson(
            times * model.capacity, begin, end, client="c", priority=3, patience=5 * in_time
        )
        simulation.poisson(
            0.5 * model.capacity, begin, end, client="a", priority=1, patience=5 * in_time
        )
        simulation.run(end + 30)
        sent = of(simulation, "a")
        return refused(sent), share(sent, in_time)


def deadlines(model: Model, times: float = 2, **settings: Any) -> float:
    """Offer `times` the capacity, each with a deadline. Return the part of capacity in time."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        in_time = model.in_time
        seconds = max(10.0, 6 * in_time)
        timeout = max(0.5 * in_time, 2.5 * model.seconds(model.max))
        simulation.poisson(
            times * model.capacity,
            begin,
            begin + seconds,
            client="a",
            timeout=timeout,
            patience=5 * in_time,
        )
        simulation.run(begin + seconds + 30)
        return answered(of(simulation, "a"), timeout) / (model.capacity * seconds)


def patient(model: Model, timeout: float, **settings: Any) -> float:
    """Send 2 x the capacity with a deadline of `timeout` seconds, and 0.3 x without one.

    Return how much is answered in time, as a part of the capacity.
    """
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        in_time = model.in_time
        seconds = max(20.0, 6 * in_time)
        end = begin + seconds
        simulation.poisson(2 * model.capacity, begin, end, client="a", timeout=timeout)
        simulation.poisson(0.3 * model.capacity, begin, end, client="b", patience=5 * in_time)
        simulation.run(end + timeout + 10)
        good = answered(of(simulation, "a"), timeout) + answered(of(simulation, "b"), in_time)
        return good / (model.capacity * seconds)


def light(model: Model, times: float, **settings: Any) -> float:
    """Offer less than the capacity. Return the part that was refused."""
    with Simulation.of(model, **settings) as simulation:
        begin = warm(simulation, model)
        end = begin + max(20.0, 6 * model.in_time)
        simulation.poisson(
            times * model.capacity, begin, end, client="a", patience=5 * model.in_time
        )
        simulation.run(end + 40)
        return refused(of(simulation, "a"))


# graphs


GRAPH = {
    "decode": Model("decode", 0.001, 0.004, 8, 2),
    "detect": Model("detect", 0.02, 0.01, 8, 1),
    "classify": Model("classify", 0.005, 0.0005, 64, 1),
}


class Graph:
    """decode, detect, then 1 to 300 parts for each image, and a join.

    `dist`: "log" draws the number of parts evenly on a logarithmic scale; "few" draws 1 to 10, and
    300 for one image in ten.
    """

    def __init__(self, dist: str) -> None:
        self.dist = dist
        moments = random.Random(5)
        self.mean = sum(self.parts(moments) for _ in range(20_000)) / 20_000
        classify = GRAPH["classify"]
        self.capacity = min(
            GRAPH["detect"].capacity, classify.capacity / self.mean
        )  # requests per second
        alone = sum(node.seconds(1) for node in GRAPH.values())
        self.in_time = max(1.0, 20 * (alone + classify.row * self.mean))

    def parts(self, moments: random.Random) -> int:
        draw = moments.random()
        if self.dist == "log":
            return max(1, int(math.exp(draw * math.log(300))))
        return 300 if draw < 0.1 else 1 + int(moments.random() * 10)

    def simulation(self, seed: int = 1, **settings: Any) -> Simulation:
        tables: dict[str, Any] = {
            "pipeline": {"entry": "decode", **settings},
            "decode": {**GRAPH["decode"].keys, "next": "detect"},
            "detect": {**GRAPH["detect"].keys, "next": "each"},
            "each": {
                "backend": "MapReduce",
                "jump": "classify",
                "split": "data",
                "merge": "result",
            },
            "classify": GRAPH["classify"].keys,
        }

        def result(node: str, item: Item) -> Any:
            return list(range(item["data"])) if node == "detect" else item["data"]

        return Simulation(tables, GRAPH, result=result, seed=seed)

    def item(self, simulation: Simulation) -> Item:
        return {"data": self.parts(simulation.random)}

    def warm(self, simulation: Simulation) -> float:
        begin = simulation.now
        for number in range(40):
            simulation.at(begin + 0.4 * number, self.send, simulation, "warm")
        simulation.run(begin + 17)
        return simulation.now

    def send(self, simulation: Simulation, client: str, **options: Any) -> None:
        simulation.send(client, item=self.item(simulation), **options)


def graph_overload(dist: str, times: float, **settings: Any) -> dict[str, float]:
    """Offer `times` the capacity of a graph with a fan-out."""
    graph = Graph(dist)
    with graph.simulation(**settings) as simulation:
        begin = graph.warm(simulation)
        moments = random.Random(simulation.seed)
        end = begin + 15
        came = begin
        while (came := came + moments.expovariate(times * graph.capacity)) < end:
            simulation.at(came, lambda: graph.send(simulation, "a", patience=5 * graph.in_time))
        for number in range(10):
            simulation.at(end + 1 + number / 2, lambda: simulation.send("probe", item={"data": 50}))
        simulation.run(end + 40)
        sent = of(simulation, "a")
        good = [r for r in sent if r.how == "ok" and r.seconds <= graph.in_time]
        admitted = [request for request in sent if request.how not in REFUSED]
        alone = [request.seconds for request in of(simulation, "probe") if request.how == "ok"]
        return {
            "good": len(good) / (graph.capacity * 15),
            "parts": sum(r.size for r in good) / (graph.capacity * graph.mean * 15),
            "late": 1 - share(admitted, graph.in_time),
            "after": median(alone),
        }


def graph_loops(dist: str, number: int, **settings: Any) -> int:
    graph = Graph(dist)
    with graph.simulation(**settings) as simulation:
        begin = graph.warm(simulation)
        simulation.closed_loops(
            number,
            begin,
            begin + 40,
            spread=0.3,
            client="a",
            make=lambda: graph.item(simulation),
        )
        simulation.run(begin + 40)
        return sum(request.how in REFUSED for request in of(simulation, "a"))
