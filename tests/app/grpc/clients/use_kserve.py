"""Use of KServe's gRPC client with a server of the protocol: every method.

use_kserve.py ADDRESS prints the outcome of each `use_…` as JSON: null, or the error.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

ARRAYS = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-1, 127]], np.int8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "INT64": np.array([[-(2**63), 2**63 - 1]]),
    "FP32": np.array([[0.5, -2.25]], np.float32),
    "FP64": np.array([[0.5, -2.25]]),
}


async def infer(client: InferenceGRPCClient, model: str, tensor: InferInput) -> Any:
    request = InferRequest(model_name=model, infer_inputs=[tensor], request_id="mine")
    return await client.infer(request)


async def use_health(client: InferenceGRPCClient) -> None:
    assert await client.is_server_live() is True
    assert await client.is_server_ready() is True
    assert await client.is_model_ready("simple") is True


async def use_raw_contents(client: InferenceGRPCClient) -> None:
    for datatype, array in ARRAYS.items():
        tensor = InferInput("INPUT0", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=True)
        answer = await infer(client, f"identity_{datatype}", tensor)
        assert answer.id == "mine"
        assert answer.outputs[0].as_numpy().tolist() == array.tolist()


async def use_typed_contents(client: InferenceGRPCClient) -> None:
    for datatype, array in ARRAYS.items():
        flat = array.reshape(-1).tolist()
        tensor = InferInput("INPUT0", list(array.shape), datatype, data=flat)
        answer = await infer(client, f"identity_{datatype}", tensor)
        assert answer.outputs[0].as_numpy().tolist() == array.tolist()


async def use_error(client: InferenceGRPCClient) -> None:
    tensor = InferInput("INPUT0", [1, 1], "FP32", data=[1.0])
    try:
        await infer(client, "nope", tensor)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "unknown model" in error.details()
        return
    raise AssertionError("it was answered")


async def main() -> None:
    outcomes: dict[str, str | None] = {}
    async with InferenceGRPCClient(sys.argv[1], timeout=30) as client:
        for name, use in inspect.getmembers(sys.modules[__name__], inspect.iscoroutinefunction):
            if name.startswith("use_"):
                try:
                    await use(client)
                except Exception:
                    outcomes[name] = traceback.format_exc()
                else:
                    outcomes[name] = None
    print(json.dumps(outcomes))


asyncio.run(main())
