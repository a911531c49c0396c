"""The progress of a build: TensorRT's phases as one fraction that grows.

It also has what the build waits for, and a way to cancel it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import BackendError


class BuildCancelledError(BackendError):
    """Raised after `Progress.cancel` was called."""


class BuiltEngine(NamedTuple):
    """The result of a build ahead of the first start."""

    path: Path
    size: int
    """Bytes of the plan."""
    built: bool
    """False: the engine was there already."""


class Progress:
    """The progress of one build, which any thread may read.

    `cancel` ends a wait at once, and makes TensorRT give up at its next step.
    """

    def __init__(self, report: Callable[[float, str], None] | None = None) -> None:
        """`report` is called with the fraction (0 to 1) and the phase whenever they change.

        It is called on the thread that builds.
        """
        self.fraction = 0.0
        self.phase = ""
        self.waits_for = ""
        """The other process, which builds the same engine; "" outside a wait."""
        self.cancelled = False
        self._woken = threading.Event()
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}

    def cancel(self) -> None:
        """Stop the build or the wait for another one. May be called from any thread."""
        self.cancelled = True
        self._woken.set()

    def wait(self, other: str, wait: Callable[[], None]) -> bool:
        """Call `wait`, which blocks until `other` has finished.

        Return True when it returned, False if `cancel` came first. Raises what `wait` raises.

        A call that blocks in the kernel can't be ended from another thread, so it gets a thread of
        its own, and after `cancel` it is abandoned there.
        """
        future: Future[None] = Future()

        def run() -> None:
            try:
                wait()
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)
            self._woken.set()

        self.waits_for = other
        if self._report is not None:
            self._report(self.fraction, f"waits for {other}")
        threading.Thread(target=run, name="penstock-wait", daemon=True).start()
        self._woken.wait()
        self.waits_for = ""
        if self.cancelled:
            return False
        future.result()
        return True

    @property
    def text(self) -> str:
        """The state in words: `building 42 %`, or what the build waits for.

        "" before the first phase.
        """
        if self.waits_for:
            return f"waits for {self.waits_for}, which builds the engine"
        return f"building {self.fraction * 100:.0f} %" if self.phase else ""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase of `steps` steps, inside the phase `parent`."""
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))
            self._update(name)

    def step(self, name: str, index: int) -> bool:
        """Count step `index` of a phase as done. Return whether the build should go on."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(index + 1, phase.steps)
                self._update(name)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """End a phase."""
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None and not self.cancelled:
                self.phase, self.fraction = name, 1.0
                if self._report is not None:
                    self._report(1.0, name)

    def _update(self, name: str) -> None:
        """Compute the fraction again.

        It never falls, although a phase inside a step may run several times.
        """
        fraction = max(
            (
                self._share(root)
                for root, phase in self._phases.items()
                if phase.parent not in self._phases
            ),
            default=0.0,
        )
        self.phase, self.fraction = name, max(self.fraction, min(fraction, 1.0))
        if self._report is not None:
            self._report(self.fraction, name)

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inside = max(
            (self._share(child) for child, inner in self._phases.items() if inner.parent == name),
            default=0.0,
        )
        return (phase.done + inside * (phase.done < phase.steps)) / phase.steps


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def make_monitor(trt: Any, progress: Progress) -> Any:
    """Make the `IProgressMonitor` that reports to `progress`. It must outlive the build."""

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return ProgressMonitor()
