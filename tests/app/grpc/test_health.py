"""The health and reflection services."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVING = health_pb2.HealthCheckResponse.SERVING


def test_health_and_reflection(serve: Any, sources: Any) -> None:
    with (
        serve(sources[:1], api_key="key") as one,
        grpc.insecure_channel(one.address) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request).status == SERVING
            assert next(stub.Watch(request)).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watched = next(stub.Watch(health_pb2.HealthCheckRequest(service="nope")))
        assert watched.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(grpc.RpcError):
            ProtoReflectionDescriptorDatabase(channel).get_services()


def test_reflection(served: Any) -> None:
    with grpc.insecure_channel(served.address) as channel:
        found = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in found.get_services()
        file = found.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelInfer" in [method.name for method in file.service[0].method]
