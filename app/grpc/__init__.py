"""The Open Inference Protocol over gRPC, with Triton's extensions: `GRPCInferenceService`.

Needs the extra `grpc`. Nothing outside this room imports grpc or protobuf, and `server/` imports
this room only if a gRPC port is set.
"""
