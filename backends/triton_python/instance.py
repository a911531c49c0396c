"""One object of a TritonPythonModel: its life, and its arguments."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ..base import Context
from ..errors import BackendError
from ..text import message_of
from . import model_file
from .event_loop import EventLoop
from .instance_metrics import InstanceMetrics
from .running import RunningModel

logger = logging.getLogger("penstock.model")


class ModelInstance:
    """A TritonPythonModel that has been initialized. `name`: as Triton names its instances."""

    def __init__(self, file: Path, config: dict[str, Any], context: Context) -> None:
        """Import the model and initialize it.

        Raises BackendError with the model's own words if either fails.
        """
        file = file.absolute()
        arguments = arguments_of(file, config, context)
        self.name = arguments["model_instance_name"]
        self.loop = EventLoop(f"event loop of {self.name}")
        beside = () if context.alone else (str(file.parent), str(file.parent.parent))
        package = "" if context.alone else model_file.package_of_thread()
        server = getattr(context, "server", None)
        metrics = InstanceMetrics(server if context.alone else None)
        self.running = RunningModel(file.parent, metrics, server, beside, package)
        self._initialized = False
        try:
            cls = model_file.load(self.running, file)
            with self.running.entered():
                self._model = cls()
                if not callable(getattr(self._model, "execute", None)):
                    raise BackendError(f"Python model {file} does not implement `execute` method.")
                if hasattr(self._model, "initialize"):
                    self._model.initialize(arguments)
            self._initialized = True
        except BaseException as error:
            self.close()
            if isinstance(error, (BackendError, KeyboardInterrupt)):
                raise
            raise BackendError(
                f"initializing model {self.name} failed: {describe(error)}"
            ) from error

    def execute(self, requests: list[Any]) -> Any:
        """Call the model's `execute` and return what it returns: a coroutine, if it is one."""
        with self.running.entered():
            return self._model.execute(requests)

    def close(self) -> None:
        """Finalize the model, if it was initialized, and let go of its metrics."""
        try:
            if self._initialized and hasattr(self._model, "finalize"):
                self._initialized = False
                with self.running.entered():
                    self._model.finalize()
        except BaseException:  # SystemExit too: it is unloaded all the same
            logger.exception("model %s: finalize failed", self.name)
        finally:
            self.loop.close()
            self.running.metrics.close()
            model_file.unload(self.running)


def arguments_of(file: Path, config: dict[str, Any], context: Context) -> dict[str, str]:
    """Return the argument of `initialize`, as Triton's."""
    folder = file.parent.parent
    name = str(config.get("name") or folder.name)
    places = [
        (f"{group.get('name') or f'{name}_{index}'}_{number}", group.get("kind", "KIND_CPU"), gpu)
        for index, group in enumerate(config.get("instance_group", ()))
        for number in range(int(group.get("count", 1)))
        for gpu in group.get("gpus") or (0,)
    ]
    instance, kind, device = f"{name}_0_{context.instance}", "KIND_CPU", 0
    if context.instance < len(places):
        instance, kind, device = places[context.instance]
    if context.device.startswith("cuda"):
        kind, device = "KIND_GPU", int(context.device.partition(":")[2] or 0)
    return {
        "model_config": json.dumps(config, separators=(",", ":")),
        "model_instance_kind": kind.removeprefix("KIND_"),
        "model_instance_name": instance,
        "model_instance_device_id": str(device),
        "model_repository": str(folder),
        "model_version": file.parent.name,
        "model_name": name,
    }


def describe(error: BaseException) -> str:
    """Return an exception of a model as its client sees it: its name and its words."""
    message = message_of(error)
    name = type(error).__name__
    return f"{name}: {message}" if message else name
