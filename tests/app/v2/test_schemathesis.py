"""Schemathesis over the protocol's part of `/openapi.json`, against real servers.

What matches the document is accepted, what does not is refused, and every answer is one that the
document has.

The document leaves to each model's metadata which names, shapes and datatypes it takes. So there
are two runs: one with the document as it is, and names of models that exist and that do not; one
with the metadata of this server's models written into the document, so that the server has to
accept whatever matches. clients/schemathesis.toml says which checks are on.

A longer run: SCHEMATHESIS="--seed 7 --max-examples 1000" scripts/test
tests/app/v2/test_schemathesis.py
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from math import prod
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import create_app
from penstock.app.settings import Settings

from ..server.doors import open_door
from ..server.relay import relayed

CONFIG = Path(__file__).parent / "clients" / "schemathesis.toml"
BOUND = os.environ.get("SCHEMATHESIS", "--seed 1 --max-examples 10").split()
MODELS = [
    "simple",
    "identity_BOOL",
    "identity_INT8",
    "identity_UINT64",
    "identity_FP32",
    "identity_FP64",
    "identity_BYTES",
    "matmul",
]
"""The models whose requests are written into the document."""

OTHERS = ["digits", "text"]
"""An image isn't valid JSON; text takes any shape of one element."""

ON: dict[str, Any] = {
    "api_key": "k3y",
    "admin_token": "adm1n",
    "allow_model_control": True,
    "allow_model_overrides": True,
    "allow_shared_memory": True,
    "allow_log_settings": True,
    "allow_trace_settings": True,
}
KEY = {"Authorization": "Bearer k3y"}

ROUNDED = 2.0**128 - 2.0**103
"""From here on a number is infinite as FP32, and refused; below it is rounded."""

PARAMETERS = {
    "type": ["object", "null"],
    "properties": {
        "priority": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        "timeout": {"enum": [0, 20_000_000]},
        "binary_data_output": {"type": "boolean"},
        "note": {"type": ["string", "number", "boolean"]},
    },
    "additionalProperties": {"type": ["string", "number", "boolean"]},
    "propertyNames": {"pattern": "^([^_]|$)"},
}

ELEMENTS = {
    "BOOL": {"type": "boolean"},
    "FP32": {"type": "number", "exclusiveMinimum": -ROUNDED, "exclusiveMaximum": ROUNDED},
    "FP64": {"type": "number"},
    "BYTES": {"type": "string"},
    **{
        f"{kind}INT{bits}": {
            "type": "integer",
            "minimum": int(bounds.min),
            "maximum": int(bounds.max),
        }
        for kind in ("", "U")
        for bits in (8, 16, 32, 64)
        for bounds in (np.iinfo(f"{kind.lower()}int{bits}"),)
    },
}


@pytest.fixture
def region() -> Any:
    memory = shared_memory.SharedMemory(
        f"penstock_schemathesis_{os.getpid()}", create=True, size=64
    )
    yield memory.name
    memory.close()
    memory.unlink()


def served_sources(sources: list[Any]) -> list[Any]:
    """Return the sources of the models that are asked."""
    spare = {
        "pipeline": {"name": "spare", "inputs": {"data": {"kind": "text"}}},
        "node": {"backend": "Identity"},
    }
    chosen = [
        source
        for source in sources
        if not isinstance(source, dict) or source["pipeline"]["name"] in {*MODELS, *OTHERS}
    ]
    return [*chosen, spare]


@pytest.fixture
def server(running: Any, sources: Any, kept_log_settings: None, tmp_path: Path) -> Iterator[Any]:
    """Yield a client of two servers: the one answers past ASGI, the other by it, with the same
    bytes.
    """
    settings = Settings(**ON, trace_mode="triton", trace_file=tmp_path / "trace.json")
    apps = [create_app(served_sources(sources), settings=settings) for _ in range(2)]
    for app in apps:  # not by both at once: FastAPI filters warnings, for all threads
        app.openapi()
    with (
        open_door(running, apps[0], settings, True) as direct,
        open_door(running, apps[1], settings, False) as asgi,
        relayed((direct, asgi)) as (relay, client),
    ):
        client.headers.update(KEY)
        yield client
        assert relay.check() > 0


def as_it_is(server: Any) -> Any:
    """Return the document with the names of existing models, and any other name."""
    document = server.get("/openapi.json").json()
    paths = {path: methods for path, methods in document["paths"].items() if path.startswith("/v2")}
    names = {"model": [*MODELS, *OTHERS, "spare"], "version": ["1"]}
    for operation in (operation for methods in paths.values() for operation in methods.values()):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] in names:
                parameter["schema"] = {
                    "anyOf": [{"enum": names[parameter["name"]]}, {"type": "string"}]
                }
    return {**document, "paths": paths}


def of_this_server(server: Any, region: Any) -> Any:
    """Return the document with this server's names and bodies, an operation for each model."""
    document = as_it_is(server)
    paths: dict[str, Any] = {}
    for path, methods in document["paths"].items():
        for name in names_in(path):
            for method, operation in copy.deepcopy(methods).items():
                operation["operationId"] += f"_{name}"
                operation["parameters"] = [
                    parameter
                    for parameter in operation.get("parameters", ())
                    if parameter["name"] == "region"
                ]
                if path.endswith("/infer"):
                    body = infer_request(server.get(f"/v2/models/{name}").json())
                    operation["requestBody"]["content"] = {"application/json": {"schema": body}}
                elif "/generate" in path:
                    body = generate_request(server.get(f"/v2/models/{name}").json())
                    operation["requestBody"]["content"] = {"application/json": {"schema": body}}
                paths.setdefault(path.format(model=name, version="1", region="{region}"), {})[
                    method
                ] = operation
    schemas = document["components"]["schemas"]
    schemas["RepositoryLoadRequest"]["properties"]["parameters"] = {
        "type": ["object", "null"],
        "properties": {"config": {"const": '{"max_batch_size": 0}'}},
        "additionalProperties": False,
    }
    schemas["SharedMemoryRegisterRequest"]["properties"] |= {
        "key": {"const": region},
        "offset": {"const": 0},
        "byte_size": {"type": "integer", "minimum": 1, "maximum": 64},
    }
    return {**document, "paths": paths}


def names_in(path: Any) -> Any:
    """Return the names of models to use for `{model}`: all for the bodies of infer requests, a few
    where the body does not depend on the model, and one for paths with a version.
    """
    if "{model}" not in path:
        return [""]
    if "{version}" in path:
        return MODELS[:1]
    if "/repository/" in path:
        return ["spare"]
    if "/generate" in path:
        return MODELS[::3]
    return MODELS if path.endswith("/infer") else [MODELS[0], *OTHERS]


def infer_request(metadata: Any) -> Any:
    """Return the schema of one model's request as JSON.

    null stands for a missing value: many clients send it for what they need not say.
    """

    def exactly(tensor: Any) -> Any:
        shape = [
            1 if size == -1 and place == 0 else 2 if size == -1 else size
            for place, size in enumerate(tensor["shape"])
        ]
        data = {
            "type": "array",
            "items": ELEMENTS[tensor["datatype"]],
            "minItems": prod(shape),
            "maxItems": prod(shape),
        }
        properties = {
            "name": {"const": tensor["name"]},
            "datatype": {"const": tensor["datatype"]},
            "shape": {"const": shape},
            "data": data,
        }
        return {"type": "object", "required": list(properties), "properties": properties}

    inputs = [exactly(tensor) for tensor in metadata["inputs"]]
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": [tensor["name"] for tensor in metadata["outputs"]]},
            "parameters": {
                "type": ["object", "null"],
                "properties": {"binary_data": {"type": ["boolean", "null"]}},
            },
        },
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": PARAMETERS,
            "inputs": {
                "type": "array",
                "prefixItems": inputs,
                "items": False,
                "minItems": len(inputs),
                "maxItems": len(inputs),
            },
            "outputs": {"type": ["array", "null"], "items": wanted, "maxItems": 1},
        },
    }


def generate_request(metadata: Any) -> Any:
    """Return the schema of one model's generate request."""

    def elements(tensor: Any) -> Any:
        several: dict[str, Any] = {"type": "array", "items": ELEMENTS[tensor["datatype"]]}
        fixed = prod(size for size in tensor["shape"] if size != -1)
        if tensor["shape"].count(-1) < 2:
            several |= {"minItems": fixed, "maxItems": fixed}
        return several if fixed > 1 else {"anyOf": [several, several["items"]]}

    inputs = {tensor["name"]: elements(tensor) for tensor in metadata["inputs"]}
    return {
        "type": "object",
        "required": list(inputs),
        "properties": {
            **inputs,
            "id": {"type": ["string", "null"]},
            "parameters": PARAMETERS,
            "note": {"type": ["string", "number", "boolean"]},
        },
        "additionalProperties": False,
    }


def run(client_run: Any, tmp_path: Path, server: Any, document: Any, *more: Any) -> None:
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    command = [
        "-m",
        "schemathesis.cli",
        "--config-file",
        CONFIG,
        "run",
        file,
        "--url",
        server.base_url,
        "--no-color",
        *BOUND,
        *more,
    ]
    done = client_run("schemathesis", *command, timeout=600, HERE=str(CONFIG.parent))
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr


def test_the_document_as_it_is(server: Any, client_run: Any, tmp_path: Path) -> None:
    """The document does not say what a model takes, so nothing has to be accepted."""
    run(
        client_run,
        tmp_path,
        server,
        as_it_is(server),
        "--exclude-checks",
        "positive_data_acceptance",
    )


def test_the_document_of_this_server(
    server: Any, client_run: Any, tmp_path: Path, region: str
) -> None:
    run(client_run, tmp_path, server, of_this_server(server, region))
