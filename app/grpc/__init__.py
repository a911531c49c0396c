"""The Open Inference Protocol over gRPC, with Triton's extensions: `GRPCInferenceService`.

`start` is for the rest of the app. Everything else needs the extra `grpc`, so nothing outside this
room imports it, and `start` does so only if a gRPC port is set.
"""
