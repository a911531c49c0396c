"""Families of metrics of several processes, added up."""

from __future__ import annotations

import marshal
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from penstock.app.processes.merge.families import Family, Sum, growing, of_process, packed


def families(count: int, busy: int) -> list[Family]:
    """Return a counter, a gauge, a histogram and one of the process, as another process sends."""
    counter = CounterMetricFamily("things", "Things.", labels=["kind"])
    counter.add_metric(["a"], count)
    gauge = GaugeMetricFamily("busy", "Busy.", value=busy)
    histogram = HistogramMetricFamily("seconds", "Seconds.", labels=["node"])
    histogram.add_metric(["n"], [("1.0", count), ("+Inf", count + 1)], 2.5)
    cpu = CounterMetricFamily("process_cpu_seconds_total", "Seconds.", value=count)
    content: Any = packed([counter, gauge, histogram, cpu])
    sent: list[Family] = marshal.loads(marshal.dumps(content))
    return sent


class Collected(Collector):
    def __init__(self, total: Sum) -> None:
        self.total = total

    def collect(self) -> Any:
        return self.total.metrics()


def shown(total: Sum) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(total))
    write: Any = openmetrics
    parse: Any = text_string_to_metric_families
    assert list(parse(write(registry).decode()))  # it rejects what is twice or apart
    return generate_latest(registry).decode()


def test_equal_names_and_labels_are_added_up() -> None:
    total = Sum()
    total.add(of_process(families(2, 1), "models"))
    total.add(of_process(families(3, 4), "front 1"))
    text = shown(total)
    assert 'things_total{kind="a"} 5.0' in text
    assert "\nbusy 5.0\n" in text
    assert 'seconds_bucket{le="1.0",node="n"} 5.0' in text
    assert 'seconds_bucket{le="+Inf",node="n"} 7.0' in text
    assert 'seconds_count{node="n"} 7.0' in text
    assert 'seconds_sum{node="n"} 5.0' in text
    for line in ("# TYPE things_total counter", "# TYPE busy gauge", "# TYPE seconds histogram"):
        assert text.count(line) == 1


def test_what_is_of_a_process_has_its_name_and_no_sum() -> None:
    total = Sum()
    total.add(of_process(families(2, 1), "models"))
    total.add(of_process(families(3, 1), "front 1"))
    text = shown(total)
    assert 'process_cpu_seconds_total{process="models"} 2.0' in text
    assert 'process_cpu_seconds_total{process="front 1"} 3.0' in text


def test_of_a_process_that_has_gone_only_gauges_go() -> None:
    total = Sum()
    total.add(growing(families(2, 1)))
    total.add(families(1, 4))
    text = shown(total)
    assert 'things_total{kind="a"} 3.0' in text and "\nbusy 4.0\n" in text
