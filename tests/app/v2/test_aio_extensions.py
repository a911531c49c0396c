"""Every method of tritonclient's asyncio client for the extensions."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import tritonclient.http.aio
from tritonclient.utils import shared_memory

from penstock import create_app
from penstock.app.settings import Settings

HEADERS = {"Authorization": "Bearer adm1n"}
ON: dict[str, Any] = {
    "admin_token": "adm1n",
    "allow_model_control": True,
    "allow_model_overrides": True,
    "allow_shared_memory": True,
}
MODEL = {
    "pipeline": {
        "name": "echo",
        "inputs": {"X": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}},
        "outputs": {"Y": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}},
    },
    "node": {"backend": "Identity", "max": 4},
}


async def test_every_method_of_the_extensions(running: Any) -> None:
    key = f"/penstock_aio_{os.getpid()}"
    array = np.array([[1.0, 2.0]], np.float32)
    region = shared_memory.create_shared_memory_region("region", key, 64)
    try:
        shared_memory.set_shared_memory_region(region, [array])
        with running(
            create_app(MODEL, settings=Settings(**ON)),
            http="penstock",
        ) as server:
            async with tritonclient.http.aio.InferenceServerClient(
                server.base_url.netloc.decode()
            ) as client:
                await client.register_system_shared_memory("region", key, 64, headers=HEADERS)
                status = [{"name": "region", "key": key, "offset": 0, "byte_size": 64}]
                assert await client.get_system_shared_memory_status() == status
                assert await client.get_system_shared_memory_status("region") == status
                given = tritonclient.http.aio.InferInput("X", [1, 2], "FP32")
                given.set_shared_memory("region", 8)
                wanted = tritonclient.http.aio.InferRequestedOutput("Y")
                wanted.set_shared_memory("region", 8, offset=32)
                await client.infer("echo", [given], outputs=[wanted])
                assert (
                    shared_memory.get_contents_as_numpy(
                        region, np.float32, [1, 2], offset=32
                    ).tolist()
                    == array.tolist()
                )
                await client.unregister_system_shared_memory("region", headers=HEADERS)
                await client.unregister_system_shared_memory(headers=HEADERS)
                assert await client.get_system_shared_memory_status() == []

                for answer in (
                    await client.get_inference_statistics(),
                    await client.get_inference_statistics("echo", "1"),
                ):
                    assert answer["model_stats"][0]["inference_count"] == 1

                await client.unload_model("echo", headers=HEADERS)
                assert (await client.get_model_repository_index())[0]["state"] == "UNAVAILABLE"
                await client.load_model("echo", headers=HEADERS)
                await client.load_model(
                    "echo", config=json.dumps({"max_batch_size": 3}), headers=HEADERS
                )
                assert (await client.get_model_config("echo"))["max_batch_size"] == 3
                assert (await client.get_model_repository_index())[0]["state"] == "READY"
    finally:
        shared_memory.destroy_shared_memory_region(region)
