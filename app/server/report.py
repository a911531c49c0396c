"""The report that SIGUSR1 writes to the log: what the server holds and does at this moment."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator

from penstock.backends.memory import budget
from penstock.backends.text import message_of
from penstock.pipelines.node.executor import Executor
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .connections import Connections


def report_of(repository: Repository, connections: Connections) -> str:
    """Return the report, as text of several lines. Call it on the loop."""
    return "\n".join(_lines(repository, connections))


def _lines(repository: Repository, connections: Connections) -> Iterator[str]:
    yield f"report: the server is {repository.not_ready or 'ready'}"
    yield f"  memory of requests: {budget.used} of {budget.limit} bytes (max_memory)"
    ended = ", ".join(f"{count} by {why}" for why, count in connections.closed.items() if count)
    yield (
        f"  connections: {len(connections.open)} of {connections.max_connections}; "
        f"the server ended {ended or 'none'}"
    )
    for name, versions in repository.version_states().items():
        for version, state in versions.items():
            which = f"{name} version {version}" if len(versions) > 1 else name
            yield f"  pipeline {which}: {state}"
            if (pipeline := repository.versions.get(name, {}).get(version)) is not None:
                yield from _pipeline(pipeline)


def _pipeline(pipeline: Pipeline) -> Iterator[str]:
    most = pipeline.config.max_requests
    yield f"    {pipeline.in_flight} requests in flight (max_requests = {most})"
    for composite in pipeline.composites:
        yield f"    node {composite.name}: {len(composite.waiting)} items wait for other nodes"
    for node in pipeline.nodes:
        yield (
            f"    node {node.name}: {node.scheduler.queued} rows queue, {node.outflow.bytes} bytes "
            "of results wait at later nodes"
        )
        for executor in node.executors:
            yield from _executor(node, executor)


def _executor(node: Node, executor: Executor) -> Iterator[str]:
    batch = node.scheduler.running.get(executor)
    if batch is not None:
        seconds = time.monotonic() - batch.started
        doing = f"runs {batch.size} rows since {seconds:.1f} s{' (stuck)' if batch.stuck else ''}"
    else:
        doing = "is idle" if executor.loaded else executor.loading or "loads"
    yield f"      executor {executor.name} {doing}; its stack:"
    try:
        stack = executor.stack()
    except Exception as error:  # of a thread that ends at this moment
        stack = f"(it can't be read: {message_of(error)})"
    yield textwrap.indent(stack.rstrip(), " " * 8)
