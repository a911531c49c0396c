"""The log settings by gRPC, with Triton's clients."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from penstock.app.log_settings import log_settings

messages: Any = tritonclient.grpc.service_pb2
ADMIN = {"authorization": "Bearer admin"}


async def call(client: Any, method: str, *args: Any, **more: Any) -> Any:
    """Call a method of the client for threads or of the one for asyncio."""
    answer = getattr(client, method)(*args, **more)
    return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture(autouse=True)
def at_info(kept_log_settings: None) -> None:
    """Begin at the level info."""
    logging.getLogger("penstock").setLevel(logging.INFO)
    log_settings.reset()


def told(answer: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in answer.settings.items()
    }


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_read_and_change(served: Any, kind: str) -> None:
    client: Any = served.client
    if kind == "asyncio":
        client = tritonclient.grpc.aio.InferenceServerClient(served.address)
    known = {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert told(await call(client, "get_log_settings")) == known
    change = {"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    known |= change
    answer = await call(client, "update_log_settings", {**change, "log_error": None}, headers=ADMIN)
    assert told(answer) == known == told(await call(client, "get_log_settings"))
    logger = logging.getLogger("penstock.test")
    assert logger.isEnabledFor(logging.DEBUG)
    with pytest.raises(InferenceServerException, match="expected the header Authorization"):
        await call(client, "update_log_settings", {"log_info": True})
    if kind == "asyncio":
        await client.close()


@pytest.mark.parametrize(
    ("name", "value", "code", "text"),
    [
        ("log_file", {"string_param": "x"}, "UNIMPLEMENTED", "log file location can not be upd"),
        ("log_info", {"string_param": "x"}, "INVALID_ARGUMENT", "expect bool for 'log_info'"),
        ("log_verbose_level", {"bool_param": True}, "INVALID_ARGUMENT", "expect int32 for"),
        ("log_verbose_level", {"uint32_param": 2**31}, "INVALID_ARGUMENT", "expect int32 for"),
        ("log_format", {"uint32_param": 1}, "INVALID_ARGUMENT", "expect string for 'log_format'"),
        ("log_format", {"string_param": "xml"}, "INVALID_ARGUMENT", "--log_format, got: xml"),
        ("loginfo", {"bool_param": True}, "INVALID_ARGUMENT", "did you mean 'log_info'"),
    ],
)
def test_refused_changes(served: Any, name: str, value: Any, code: str, text: str) -> None:
    chosen = messages.LogSettingsRequest.SettingValue(**value)
    request = messages.LogSettingsRequest(settings={name: chosen})
    with pytest.raises(Exception, match=text) as caught:
        served.client._client_stub.LogSettings(request, metadata=list(ADMIN.items()))
    error: Any = caught.value
    assert error.code().name == code
