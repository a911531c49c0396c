"""`TorchServeHandler`: a backend that runs a handler written for TorchServe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import BackendError, InvalidInput
from ..expressions.composite import Decoupled
from ..gpu.ipc import gpu_count
from ..item import Item
from ..server import HANDLE, Response
from .context import Context as HandlerContext
from .context import RequestProcessor
from .manifest import read_manifest, read_yaml
from .request import fields_of

ANY_STATUS_FROM = 400
"""Statuses from here on are errors."""


class TorchServeHandlerParams(Params):
    model_dir: str = Field(
        ".", description="folder of the unpacked archive (.mar), with MAR-INF/MANIFEST.json"
    )
    handler: str | None = Field(
        None,
        description="file.py, file.py:function, or a handler of TorchServe's, such as "
        "object_detector; default: that of the manifest",
    )


class TorchServeHandler(Backend):
    """Runs TorchServe's `handle(data, context)`, with or without the package torchserve.

    `data`: the body of a request, bytes, read as TorchServe reads it by the item's `headers` and
    `form`: a form has its fields, everything else is the field `body`. Any other value is `body` as
    it is. The handler gets a list of such dicts, the requests of a batch.

    `result`: what the handler returns for the request. A text that it declares to be JSON
    (`set_response_content_type`) is parsed.

    Raises InvalidInput, with that status, for a status of 400 and more that the handler sets, and
    for its PredictionException. Raises BackendError if it returns something else than a list with
    an answer for each request.
    """

    parameters: ClassVar[type[Params] | None] = TorchServeHandlerParams
    extra = "torch"
    takes_request_id = True
    takes_headers = True
    blocks = "it runs a handler of the user's"

    def init(self, params: TorchServeHandlerParams, context: Context) -> None:
        from . import loading, modules

        modules.provide()
        folder = context.resolve(params.model_dir).resolve()
        manifest = read_manifest(folder)
        model = manifest["model"]
        options = read_yaml(folder / model["configFile"]) if "configFile" in model else {}
        self.context = HandlerContext(
            str(model.get("modelName", context.pipeline)),
            str(folder),
            manifest,
            context.max or 1,
            _gpu(context.device),
            modules.VERSION,
            model_yaml_config=options,
        )
        if _has_own_process():
            os.chdir(folder)  # as TorchServe's workers
        self.handler = params.handler or model["handler"]
        try:
            with loading.own_modules(folder):
                self.handle = loading.load_handler(self.handler, Path(folder), self.context)
        except BackendError as error:
            raise BackendError(f"TorchServeHandler: {error}") from error
        except Exception as error:
            raise BackendError(
                f"TorchServeHandler: the handler {self.handler} of {folder} can't be initialised: "
                f"{type(error).__name__}: {error}"
            ) from error

    def forward(self, batch: list[Item]) -> None:
        for item, answer, processor in self._answers(batch):
            if processor.status >= ANY_STATUS_FROM:
                item["error"] = _refused(processor.status, processor.phrase or str(answer))
            else:
                item["result"] = _as_declared(answer, processor)

    def _answers(self, batch: list[Item]) -> list[tuple[Item, Any, RequestProcessor]]:
        """Run the handler. Return each item with its answer and what the handler has set for it."""
        data, processors = [], []
        for item in batch:
            headers = item.get("headers") or {}
            fields, types = fields_of(item)
            data.append(fields)
            of_fields = {name: {"content-type": media} for name, media in types.items()}
            processors.append(RequestProcessor({**of_fields, **headers}))
        self.context.request_processor = processors
        self.context.request_ids = {
            index: item.get("request_id", "") for index, item in enumerate(batch)
        }
        self.context.metrics.request_ids = self.context.request_ids
        try:
            answers = self.handle(data, self.context)
        except Exception as error:
            message = getattr(error, "message", None)
            status = getattr(error, "error_code", None)
            if type(error).__name__ == "PredictionException" and isinstance(status, int):
                raise _refused(status, str(message)) from error
            raise
        if not isinstance(answers, list) or len(answers) != len(batch):
            found = f"a list of {len(answers)}" if isinstance(answers, list) else type(answers)
            raise BackendError(
                f"TorchServeHandler: {self.handler} returned {found}: expected a list with an "
                f"answer for each of the {len(batch)} requests"
            )
        return list(zip(batch, answers, processors, strict=True))


class TorchServeStreamingHandler(TorchServeHandler, Decoupled):
    """Runs a handler that answers in parts, by TorchServe's `send_intermediate_predict_response`.

    As TorchServeHandler, but one request at a time: each part that the handler sends is a result,
    and what it returns is the last one.
    """

    def init(self, params: TorchServeHandlerParams, context: Context) -> None:
        super().init(params, context)
        self.server = context.server

    def forward(self, batch: list[Item]) -> None:
        server = self.server
        assert server is not None  # a node of streams has one
        (item,) = batch

        def send(answers: Any, *, final: bool = False) -> None:
            (processor,) = self.context.request_processor
            value = _as_declared(answers[0], processor)
            server.respond(item[HANDLE], Response({"result": value}, final=final))

        self.context.send = send
        with server.running(batch, responds=True):
            ((_, answer, processor),) = self._answers(batch)
            if processor.status >= ANY_STATUS_FROM:
                raise _refused(processor.status, processor.phrase or str(answer))
            send([answer], final=True)


def _as_declared(answer: Any, processor: RequestProcessor) -> Any:
    """Return an answer, parsed if it is a text that the handler declares to be JSON."""
    media_type = (processor.get_response_header("content-type") or "").partition(";")[0]
    if media_type.strip().lower() == "application/json" and isinstance(
        answer, str | bytes | bytearray
    ):
        try:
            return orjson.loads(answer)
        except ValueError:
            pass  # it stays what it is
    return bytes(answer) if isinstance(answer, bytearray) else answer


def _refused(status: int, message: str) -> InvalidInput:
    error = InvalidInput(message)
    error.status = status  # one that is none of HTTP's errors has no effect
    return error


def _gpu(device: str) -> int | None:
    """Return the number of the GPU that a device names; None for the CPU.

    Imports torch only where there may be a GPU: it takes seconds, and not every handler uses it.
    """
    if device == "cpu" or (not device and not gpu_count()):
        return None
    from ..gpu.device import choose_device

    chosen = choose_device(device)
    return chosen.index if chosen.type == "cuda" else None


def _has_own_process() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "penstock.backends.process.worker"
