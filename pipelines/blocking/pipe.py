"""The thread-safe face: `pipe(config)`, called from any thread, blocking, in place, as torchpipe's users know it.

`calls.py` has what one call is, `loop_thread.py` the thread on which the pipeline runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..config.load import PipelineConfig
from ..node.executor import current
from ..node.node import Node
from ..pipeline import Pipeline
from .calls import PipeCall, event_of, items_of
from .loop_thread import LoopThread


class Pipe:
    """A pipeline for plain threads; `penstock.pipe(config)` makes one.

    ```python
    with penstock.pipe("digits.toml") as p:
        item = {"data": png_bytes}
        p(item)
        item["result"]
    ```

    Close it, or use it in a `with`. One that is not closed ends with its last reference (ResourceWarning) or with the interpreter.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        runner = LoopThread(pipeline)
        runner.start()
        self._runner = runner

    def __repr__(self) -> str:
        return f"<pipe{repr(self._runner.pipeline).removeprefix('<Pipeline')}"

    def __call__(
        self,
        item: MutableMapping[str, Any] | Sequence[MutableMapping[str, Any]],
        *,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> None:
        """Run one item, or a list of items as one call, and bring the answers into the callers' dicts. Blocks; the GIL is free meanwhile.

        A `result` and `error` of before are erased. Then a success sets `result` and whatever else the backends set, but `data`; a soft
        failure (an input that can't be read) sets `error` and no `result`, and raises nothing; a failure sets no `result` and is raised:
        `MissingData` (an IndexError), `NotFound` (an IndexError, for an unknown `node_name`), `QueueFull`, `Overloaded`, `NotReady`,
        `DeadlineExceeded`, `BackendError`. In a list, a failure of one item cancels the others, and none has a `result`.

        `timeout`: seconds until the deadline, at most the pipeline's own. `priority`: 1 (highest) to the entry node's `priority_levels`.

        With an `Event` in the item the call returns at once, and `event.Wait()` does the rest.

        Raises TypeError for what is neither a mutable mapping nor a list or tuple of such; ValueError for the same dict twice in a list,
        and for an Event that was used before; RuntimeError in the thread of a running event loop, in a forked child, and in a backend
        that would wait for itself. Nothing is changed by these.
        """
        runner = self._runner
        items = items_of(item)
        event = event_of(items)
        if event is None:
            runner.check_may_wait()
        else:
            runner.check_process()
            event.claim()
        for each in items:
            each.pop("result", None)
            each.pop("error", None)
        call = PipeCall(runner, items, timeout, priority, None if event is None else self)
        try:
            if event is not None:
                event.attach(call)
                runner.post(call)
                return
            try:
                runner.post(call)
                runner.wait_for(call)
            except BaseException:  # KeyboardInterrupt: nobody waits any more
                runner.abandon(call)
                raise
            call.merge()
        finally:
            del call  # else the error's traceback and the call hold one another, and the image

    def close(self, timeout: float = 10.0) -> None:
        """Take nothing more in, fail what queues with `NotReady`, let what runs end within `timeout` seconds, end the threads.

        Idempotent; from several threads, each returns when all has ended.
        """
        runner = self._runner
        if os.getpid() != runner.pid:  # a fork: the threads are the parent's
            runner.stopping = True
            return
        executor = getattr(current, "executor", None)
        if executor is not None and executor.owner in runner.pipeline.nodes:
            raise RuntimeError(
                f"a backend of {executor.name} closes the pipe it runs in: it would wait for itself"
            )
        runner.stop(timeout)
        if not runner.is_current:
            runner.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        runner: LoopThread | None = getattr(
            self, "_runner", None
        )  # there is none where loading failed
        if runner is not None and not runner.stopping and os.getpid() == runner.pid:
            runner.stop(10.0)
            warnings.warn(
                f"unclosed {self!r}: call close(), or use it in a `with`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def max(self) -> int:
        """The largest batch that the node of a one-node pipe runs."""
        return max(executor.max for executor in self._only_node().executors)

    def min(self) -> int:
        """The smallest batch that the node of a one-node pipe runs without padding."""
        return min(executor.min for executor in self._only_node().executors)

    def _only_node(self) -> Node:
        nodes = self._runner.pipeline.nodes
        if len(nodes) != 1:
            raise ValueError(
                f"min() and max() are of a pipe with one node; this one has {', '.join(node.name for node in nodes) or 'none'}"
            )
        return nodes[0]


def pipe(
    config: str | Path | Mapping[str, Any] | PipelineConfig, *, name: str | None = None
) -> Pipe:
    """Load a pipeline for use from plain threads: a TOML file, a dict of node dicts, a flat dict (one node), or an expression.

    Returns when it is loaded and warm. Raises `ConfigError` with every problem found, `BackendError` for a backend that can't be loaded,
    `TypeError` for another type of configuration. Makes one thread for the pipeline's event loop, besides the executors'.
    """
    return Pipe(
        Pipeline(config) if isinstance(config, PipelineConfig) else Pipeline.load(config, name=name)
    )
