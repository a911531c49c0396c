"""The Open Inference Protocol with Triton's extensions, over HTTP (docs/how-to/triton.md).

Every loaded pipeline is also a model of the protocol.
"""
