"""The ordinary RPCs: each is a route of the protocol, with messages instead of JSON."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from penstock.backends.errors import InvalidRequest
from penstock.backends.memory import Reservation

from ..http.auth import check_admin
from ..settings import Settings
from ..v2.call import ProtocolAnswer, ProtocolError
from ..v2.cuda_memory import ROOT as CUDA_ROOT
from ..v2.log_settings import PATH as LOG_SETTINGS_PATH
from ..v2.models.description import MODEL_PATH, ModelNotReadyError
from ..v2.routes import ProtocolApp
from ..v2.trace_setting import TRACE_PATH
from .calls import RpcCall, check_call
from .messages import messages
from .request import parameters_of

MAX_REQUEST_BYTES = 1 << 16
"""The largest request of an RPC that takes nothing but names."""

REGION_PATH = "/v2/systemsharedmemory[/region/{region}]"
CUDA_REGION_PATH = f"{CUDA_ROOT}[/region/{{region}}]"

Names = dict[str, str]
Arguments = dict[str, Any]


class Rpc(NamedTuple):
    """An RPC, the route that answers it, and how its messages become that route's JSON.

    `read` returns the names of the route's path and its JSON. `write` returns the JSON form of the
    response. `is_open`: it needs no API key.
    """

    method: str
    pattern: str
    read: Callable[[Any], tuple[Names, Arguments]]
    write: Callable[[Any], dict[str, Any]]
    is_open: bool = False


def _server(request: Any) -> tuple[Names, Arguments]:
    return {}, {}


def _model(request: Any) -> tuple[Names, Arguments]:
    return {"model": request.name, "version": request.version}, {}


def _region(request: Any) -> tuple[Names, Arguments]:
    return {"region": request.name}, {}


def _registration(request: Any) -> tuple[Names, Arguments]:
    _check_region(request)
    arguments = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
    return {"region": request.name}, arguments


def _cuda_registration(request: Any) -> tuple[Names, Arguments]:
    _check_region(request)
    arguments = {
        "raw_handle": {"b64": b64encode(request.raw_handle).decode()},
        "device_id": request.device_id,
        "byte_size": request.byte_size,
    }
    return {"region": request.name}, arguments


def _check_region(request: Any) -> None:
    if not request.name:  # it would stand for all regions
        raise InvalidRequest("failed to register shared memory region '': it has no name")


def _log_settings(request: Any) -> tuple[Names, Arguments]:
    return {}, {name: _chosen(value) for name, value in request.settings.items()}


def _chosen(value: Any) -> Any:
    """Return the parameter of a setting, None if it has none."""
    field = value.WhichOneof("parameter_choice")
    return None if field is None else getattr(value, field)


_SETTING_FIELDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


def _as_settings(values: Any) -> dict[str, Any]:
    return {
        "settings": {name: {_SETTING_FIELDS[type(value)]: value} for name, value in values.items()}
    }


def _index(request: Any) -> tuple[Names, Arguments]:
    _check_repository(request)
    return {}, {"ready": request.ready}


def _in_repository(request: Any) -> tuple[Names, Arguments]:
    _check_repository(request)
    if not request.model_name:
        raise InvalidRequest("Model name cannot be empty: set model_name")
    return {"model": request.model_name}, {"parameters": parameters_of(request.parameters)}


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise ProtocolError(501, "'repository_name' specification is not supported")


def _trace_setting(request: Any) -> tuple[Names, Arguments]:
    changes: Arguments = {}
    for name, setting in request.settings.items():
        values = list(setting.value)
        if not values:
            changes[name] = None
        elif name == "trace_level":
            changes[name] = values
        elif len(values) == 1:
            changes[name] = values[0]
        else:
            raise InvalidRequest(f"expect only 1 value for '{name}'")
    return {"model": request.model_name}, changes


def _values(document: Any) -> dict[str, Any]:
    values = {
        name: {"value": value if isinstance(value, list) else [value]}
        for name, value in document.items()
    }
    return {"settings": values}


def _same(document: Any) -> dict[str, Any]:
    fields: dict[str, Any] = document
    return fields


def _nothing(document: Any) -> dict[str, Any]:
    return {}


def _by_name(regions: Any) -> dict[str, Any]:
    return {"regions": {region["name"]: region for region in regions}}


def _is_ready(answer: ProtocolAnswer) -> dict[str, Any]:
    return {"ready": answer.status == 200}


RPCS = {
    "ServerLive": Rpc("GET", "/v2/health/live", _server, lambda _: {"live": True}, True),
    "ServerReady": Rpc("GET", "/v2/health/ready", _server, _is_ready, True),
    "ModelReady": Rpc("GET", f"{MODEL_PATH}/ready", _model, _is_ready),
    "ServerMetadata": Rpc("GET", "/v2", _server, _same),
    "ModelMetadata": Rpc("GET", MODEL_PATH, _model, _same),
    "ModelConfig": Rpc("GET", f"{MODEL_PATH}/config", _model, lambda config: {"config": config}),
    "RepositoryIndex": Rpc("POST", "/v2/repository/index", _index, lambda found: {"models": found}),
    "RepositoryModelLoad": Rpc(
        "POST", "/v2/repository/models/{model}/load", _in_repository, _nothing
    ),
    "RepositoryModelUnload": Rpc(
        "POST", "/v2/repository/models/{model}/unload", _in_repository, _nothing
    ),
    "SystemSharedMemoryStatus": Rpc("GET", f"{REGION_PATH}/status", _region, _by_name),
    "SystemSharedMemoryRegister": Rpc(
        "POST", "/v2/systemsharedmemory/region/{region}/register", _registration, _nothing
    ),
    "TraceSetting": Rpc("POST", TRACE_PATH, _trace_setting, _values),
    "SystemSharedMemoryUnregister": Rpc("POST", f"{REGION_PATH}/unregister", _region, _nothing),
    "CudaSharedMemoryStatus": Rpc("GET", f"{CUDA_REGION_PATH}/status", _region, _by_name),
    "CudaSharedMemoryRegister": Rpc(
        "POST", f"{CUDA_ROOT}/region/{{region}}/register", _cuda_registration, _nothing
    ),
    "CudaSharedMemoryUnregister": Rpc("POST", f"{CUDA_REGION_PATH}/unregister", _region, _nothing),
    "LogSettings": Rpc("POST", LOG_SETTINGS_PATH, _log_settings, _as_settings),
}
"""The RPCs by name. Those of statistics are two routes: `statistics_rpc` chooses."""

STATISTICS = {
    False: Rpc("GET", "/v2/models/stats", _model, _same),
    True: Rpc("GET", f"{MODEL_PATH}/stats", _model, _same),
}
"""By whether the request names a model."""

READS = {
    "LogSettings": Rpc("GET", LOG_SETTINGS_PATH, _server, _as_settings),
    "TraceSetting": Rpc("GET", TRACE_PATH, _trace_setting, _values),
}
"""Those that only read if the request has no settings."""

NAMES = (*RPCS, "ModelStatistics")


async def answer(
    name: str,
    receive: Callable[[], Awaitable[bytes]],
    memory: Reservation,
    *,
    scope: dict[str, Any],
    protocol: ProtocolApp,
    settings: Settings,
) -> bytes:
    """Answer a call of the RPC `name` with its serialised response. Raises what its route raises.

    `receive` returns the serialised request, which `memory` then has.
    """
    rpc = RPCS.get(name, STATISTICS[False])
    group = protocol.route(rpc.method, rpc.pattern).group
    check_call(scope, group, settings, protocol.guard, is_open=rpc.is_open)
    loads = name == "RepositoryModelLoad"
    if loads:
        check_admin(scope, settings)  # before so much is received
    content = await receive()
    if len(content) > MAX_REQUEST_BYTES and not loads:
        raise InvalidRequest(
            f"the request has {len(content)} bytes, at most {MAX_REQUEST_BYTES} are accepted"
        )
    try:
        request = getattr(messages, f"{name}Request").FromString(bytes(content))
    except DecodeError:
        raise InvalidRequest(
            f"the request is not a {name}Request: its protobuf is malformed"
        ) from None
    if name == "ModelStatistics":
        rpc = STATISTICS[bool(request.name)]
    elif name in READS and not request.settings:
        rpc = READS[name]
    names, arguments = rpc.read(request)
    call = RpcCall(scope, names, arguments, settings)
    call.memory = memory
    try:
        document = rpc.write(await protocol.route(rpc.method, rpc.pattern).handler(call))
    except ModelNotReadyError:
        document = {"ready": False}
    # The protocol's JSON has more: `optional` of an input, for one.
    response = ParseDict(
        document, getattr(messages, f"{name}Response")(), ignore_unknown_fields=True
    )
    serialised: bytes = response.SerializeToString()
    return serialised
