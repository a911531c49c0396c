"""A loaded engine, and the execution contexts that its instances make of it, one at a time."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import BackendError, DeviceError
from .library import Library


@dataclass(slots=True, eq=False)
class ProfileHolder:
    """An execution context's claim to a profile."""

    profile: int
    instance: str
    """For messages: `instance 0 of node 'net'`."""


class LoadedEngine:
    """A deserialised engine.

    All instances of a recipe on a device share it, and with it the weights. Contexts are made and
    freed, and profiles chosen, one at a time: TensorRT 8.5 ended the process when two threads did
    so at once.
    """

    __slots__ = ("__weakref__", "_exclusive", "_holders", "_lock", "cuda_engine", "runtime")

    def __init__(self, cuda_engine: Any, runtime: Any) -> None:
        self.cuda_engine = cuda_engine
        self.runtime = runtime
        self._lock = threading.Lock()
        self._holders: list[ProfileHolder] = []
        self._exclusive = False
        """True once TensorRT has refused a profile that another context has, as TensorRT 8 does."""

    def make_context(
        self, holder: ProfileHolder, stream: int, reported: list[str], problem: str, *, choose: bool
    ) -> Any:
        """Make an `IExecutionContext` in the holder's profile.

        Without `choose` it stays in the profile that TensorRT gives it, as is right for an engine
        of fixed shapes. Return None if TensorRT gives a profile to one context, and another one has
        it. `reported` has TensorRT's errors, and `problem` begins the message. Raises BackendError,
        DeviceError or torch.OutOfMemoryError.
        """
        with self._lock:
            taken = any(other.profile == holder.profile for other in self._holders)
            if choose and taken and self._exclusive:
                return None
            context = self.cuda_engine.create_execution_context()
            if context is None:
                raise failure(f"{problem} can't make an execution context", reported)
            if choose and not context.set_optimization_profile_async(holder.profile, stream):
                del context  # else the traceback of the error would keep it alive
                error = failure(f"{problem} can't take profile {holder.profile}", reported)
                if not taken or type(error) is not BackendError:
                    raise error
                self._exclusive = True
                reported.clear()  # it is not why a later call fails
                return None
            self._holders.append(holder)
            return context

    def free(self, holders: Sequence[ProfileHolder], contexts: list[Any]) -> None:
        """Free contexts and their profiles. `contexts` has the last references, and is emptied."""
        with self._lock:
            contexts.clear()
            self._holders = [holder for holder in self._holders if holder not in holders]

    def holders(self, profile: int) -> list[ProfileHolder]:
        with self._lock:
            return [holder for holder in self._holders if holder.profile == profile]


def deserialise(
    library: Library, runtime: Any, plan: bytes, where: str, weight_budget: float | None
) -> LoadedEngine:
    """Make an engine of a plan.

    `weight_budget` is the share of the weights to keep on the device, in percent. Raises
    BackendError, DeviceError or torch.OutOfMemoryError with TensorRT's reasons.
    """
    with library.listening() as reported:
        if library.is_rtx:
            validity, bits = runtime.get_engine_validity(plan)
            if validity == library.trt.EngineValidity.INVALID:
                reasons = [
                    name
                    for name, value in library.trt.EngineInvalidityDiagnostics.__members__.items()
                    if bits & int(value)
                ]
                raise failure(
                    f"{where}: {library.name} {library.version} can't run this engine on this "
                    "machine",
                    reasons or reported,
                )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise failure(
                f"{where}: {library.name} {library.version} can't load the engine", reported
            )
        if weight_budget is not None and engine.streamable_weights_size:
            engine.weight_streaming_budget_v2 = int(
                engine.streamable_weights_size * weight_budget / 100
            )
    return LoadedEngine(engine, runtime)


def failure(
    problem: str, reported: Sequence[str], refusal: type[BackendError] = BackendError
) -> Exception:
    """Return the exception for the errors that TensorRT reported in its log.

    It is a `refusal` unless the device or its memory is the cause. TensorRT's calls themselves only
    return None or False.
    """
    text = f"{problem}: {'; '.join(dict.fromkeys(reported)) or 'it gives no reason'}"
    plain = text.lower()
    if "out of memory" in plain or "outofmemory" in plain:
        return torch.OutOfMemoryError(text)
    return (
        DeviceError(text)
        if re.search("cuda (failure|error|runtime)|cudaerror", plain)
        else refusal(text)
    )
