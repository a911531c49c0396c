"""The context that TorchServe gives to a handler: the model, and the requests of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .metrics import Metrics

SEQUENCE_ID_HEADER = "ts_request_sequence_id"


class RequestProcessor:
    """One request of a batch: its headers, and the status and headers that the handler sets."""

    def __init__(self, headers: Mapping[str, Any]) -> None:
        self.headers = dict(headers)
        self.by_lower_name = {str(name).lower(): value for name, value in self.headers.items()}
        self.status = 200
        self.phrase = ""
        self.response_headers: dict[str, str] = {}

    def get_request_property(self, key: str) -> Any:
        """Return a header, whatever the case of its name; None if the request has none."""
        return self.headers.get(key, self.by_lower_name.get(key.lower()))

    def get_request_properties(self) -> dict[str, Any]:
        return self.headers

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self.status = code
        self.phrase = reason_phrase or ""

    def get_response_status_code(self) -> int:
        return self.status

    def get_response_status_phrase(self) -> str:
        return self.phrase

    def add_response_property(self, key: str, value: str) -> None:
        self.response_headers[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self.response_headers

    def get_response_header(self, key: str) -> str | None:
        return self.response_headers.get(key)


class Context:
    """The argument `context` of `initialize` and `handle`, with the names that TorchServe gave it.

    `manifest` is that of the archive. `system_properties` has `model_dir`, `gpu_id` (None on the
    CPU), `batch_size`, `server_name`, `server_version` and `limit_max_image_pixels`.
    `model_yaml_config` is the file that the manifest names as `configFile`, as a dict.
    """

    def __init__(  # noqa: PLR0917  TorchServe's own signature
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        batch_size: int,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Metrics | None = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.metrics = Metrics(model_name) if metrics is None else metrics
        self.model_yaml_config = {} if model_yaml_config is None else model_yaml_config
        self.system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",  # as TorchServe says
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.request_ids: dict[int, str] | None = None
        self.request_processor: list[RequestProcessor] = []
        self.stopping_criteria: Any = None
        self.cl_socket: Any = None
        self.send: Callable[[Any], None] | None = None
        """Sends a part of the answer of each request of the batch; None: the backend sends none."""

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self.request_processor[idx].get_request_properties()

    def get_sequence_id(self, idx: int) -> Any:
        return self.get_request_header(idx, SEQUENCE_ID_HEADER)

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self.get_response_headers(idx).get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self.request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        if idx < len(self.request_processor):
            self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        for processor in self.request_processor:
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()
