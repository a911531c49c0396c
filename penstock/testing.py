"""Tools for tests of pipelines and backends: `Clock`, `Gate`, `FakeExecutor`."""

from penstock.pipelines.testing import Clock, FakeExecutor, Gate

__all__ = ["Clock", "FakeExecutor", "Gate"]
