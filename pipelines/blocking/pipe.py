"""The thread-safe interface: `pipe(config)` can be called from any thread.

A call blocks, and puts the answer into the caller's dict, as torchpipe does.

`calls.py` has one call, `loop_thread.py` the thread on which the pipeline runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..config.load import PipelineConfig
from ..node.executor import current
from ..node.node import Node
from ..pipeline import Pipeline
from ..sequences.step import steps_of
from .calls import PipeCall, event_of, items_of
from .loop_thread import LoopThread


class Pipe:
    """A pipeline for plain threads. `penstock.pipe(config)` makes one.

    ```python
    with penstock.pipe("digits.toml") as p:
        item = {"data": png_bytes}
        p(item)
        item["result"]
    ```

    Close it, or use it in a `with`. Otherwise it ends with its last reference (and a
    ResourceWarning) or with the interpreter.
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
        client: Hashable = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> None:
        """Run one item, or a list of items as one call. Put the answers into the caller's dicts.

        Blocks until the call has ended, without holding the GIL. First it removes `result` and
        `error` of an earlier call. Then

        * a success sets `result` and whatever else the backends set, except `data`;
        * a soft failure (an input that can't be read) sets `error`, and raises nothing; the logger
          `penstock.pipe` warns once for each kind of it;
        * a failure sets neither and is raised: `MissingData` (an IndexError), `NotFound` (an
          IndexError, for an unknown `node_name`), `QueueFull`, `Overloaded`, `NotReady`,
          `InvalidRequest` (`sequence`), `DeadlineExceeded`, `BackendError`. In a list, the failure
          of one item cancels the others, and none has a `result`.

        `timeout`: seconds until the deadline, at most the pipeline's own. `priority`: from 1
        (highest) to the `priority_levels` of the entry node. `client`: anything hashable that tells
        one client from another; under overload each gets its share. `sequence`, `sequence_start`
        and `sequence_end`: as in the call of a `Pipeline`.

        With an `Event` in the item the call returns at once, and `event.Wait()` does the rest.

        Raises TypeError for anything else than a mutable mapping or a list or tuple of them;
        ValueError if a dict is in a list twice, and for an Event that was used before;
        RuntimeError in the thread of a running event loop, in a forked child, and in a backend
        that would wait for itself. These change nothing.
        """
        runner = self._runner
        items = items_of(item)
        steps = steps_of(len(items), sequence, sequence_start, sequence_end)
        event = event_of(items)
        if event is None:
            runner.check_may_wait()
        else:
            runner.check_process()
            event.claim()
        for caller_item in items:
            caller_item.pop("result", None)
            caller_item.pop("error", None)
        keeps = None if event is None else self
        call = PipeCall(runner, items, timeout, priority, client=client, keeps=keeps, steps=steps)
        try:
            if event is not None:
                event.attach(call)
                runner.post(call)
                return
            try:
                runner.post(call)
                runner.wait_for(call)
            except BaseException:  # KeyboardInterrupt: this thread stops waiting
                runner.abandon(call)
                raise
            call.merge()
        finally:
            # Otherwise the call holds the error, the error this frame, and the frame the call: a
            # cycle that keeps the image.
            del call

    def close(self, timeout: float = 10.0) -> None:
        """Close the pipe: refuse new calls, let running batches end, and end the threads.

        Queued calls fail with `NotReady`. Running batches get `timeout` seconds to end.

        Idempotent. If several threads call it, each returns once everything has ended.
        """
        runner = self._runner
        if os.getpid() != runner.pid:  # in a fork: the threads belong to the parent
            runner.stopping = True
            return
        executor = getattr(current, "executor", None)
        if executor is not None and executor.owner in runner.pipeline.nodes:
            raise RuntimeError(
                f"a backend of {executor.name} closes the pipe that it runs in, and would wait for "
                "itself: close it from another thread"
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
        runner: LoopThread | None = getattr(self, "_runner", None)  # None: loading failed
        if runner is not None and not runner.stopping and os.getpid() == runner.pid:
            runner.stop(10.0)
            warnings.warn(
                f"unclosed {self!r}: call close(), or use it in a `with`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def max(self) -> int:
        """Return the largest batch, in rows, that the node of a one-node pipe runs."""
        return max(executor.max for executor in self._only_node().executors)

    def min(self) -> int:
        """Return the smallest batch, in rows, that the node of a one-node pipe runs unpadded."""
        return min(executor.min for executor in self._only_node().executors)

    def _only_node(self) -> Node:
        nodes = self._runner.pipeline.nodes
        if len(nodes) != 1:
            names = ", ".join(node.name for node in nodes) or "none"
            raise ValueError(f"min() and max() need a pipe with one node, found {names}")
        return nodes[0]


def pipe(
    config: str | Path | Mapping[str, Any] | PipelineConfig, *, name: str | None = None
) -> Pipe:
    """Load a pipeline for use from plain threads.

    `config`: a TOML file, a dict of node dicts, a flat dict (one node), or an expression. Returns
    once the pipeline is loaded and warm. Raises `ConfigError` with every problem found,
    `BackendError` if a backend can't be loaded, TypeError for another type of configuration.
    Besides the threads of the executors it starts one for the pipeline's event loop.
    """
    return Pipe(
        Pipeline(config) if isinstance(config, PipelineConfig) else Pipeline.load(config, name=name)
    )
