"""The ordinary RPCs: errors, loading, keys and restrictions. test_methods.py calls all of them."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

ADMIN = {"authorization": "Bearer admin"}


@pytest.mark.parametrize(
    ("method", "arguments", "code", "message"),
    [
        ("is_model_ready", ["nope"], "INVALID_ARGUMENT", "Request for unknown model: 'nope'"),
        ("get_model_metadata", ["simple", "9"], "INVALID_ARGUMENT", "version 9 is not found"),
        ("get_model_config", ["nope"], "INVALID_ARGUMENT", "Request for unknown model: 'nope'"),
        ("load_model", ["simple"], "PERMISSION_DENIED", "PENSTOCK_ALLOW_MODEL_CONTROL"),
        ("unload_model", ["simple"], "PERMISSION_DENIED", "PENSTOCK_ALLOW_MODEL_CONTROL"),
        ("get_system_shared_memory_status", ["nope"], "NOT_FOUND", "Unable to find"),
        ("register_system_shared_memory", ["r", "k", 1], "UNAUTHENTICATED", "admin token"),
    ],
)
def test_errors_have_a_code_and_a_message(
    served: Any, method: str, arguments: list[Any], code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        getattr(served.client, method)(*arguments)
    assert caught.value.status() == f"StatusCode.{code}"


def test_load_and_unload(serve: Any, sources: Any) -> None:
    with serve(sources[:1], admin_token="admin", allow_model_control=True) as one:
        one.client.unload_model("simple", headers=ADMIN)
        with pytest.raises(InferenceServerException, match="'simple'"):
            one.client.get_model_metadata("simple")
        one.client.load_model("simple", headers=ADMIN)
        assert one.client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="overrides are off"):
            one.client.load_model("simple", config="{}", headers=ADMIN)


def test_keys(serve: Any, sources: Any) -> None:
    with serve(sources[:1], api_key="key") as one:
        client = one.client
        assert client.is_server_live() and client.is_server_ready()
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "key"}):
            with pytest.raises(InferenceServerException) as caught:
                client.get_model_metadata("simple", headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        good = {"authorization": "Bearer key"}
        assert client.get_model_metadata("simple", headers=good).name == "simple"


def test_restricted_apis(serve: Any, sources: Any) -> None:
    rules = "metadata:x-operator=secret;statistics:off"
    with serve(sources[:1], restricted_api=rules) as one:
        client = one.client
        assert client.is_model_ready("simple")
        for name in ("x-operator", "triton-grpc-protocol-x-operator"):
            assert client.get_server_metadata(headers={name: "secret"}).name == "penstock"
            with pytest.raises(InferenceServerException, match="protocol-x-operator'") as caught:
                client.get_server_metadata(headers={name: "wrong"})
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        with pytest.raises(InferenceServerException, match="turned it off"):
            client.get_inference_statistics()
