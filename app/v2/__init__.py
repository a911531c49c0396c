"""The Open Inference Protocol with Triton's extensions, over HTTP: every loaded pipeline is a model too (docs/how-to/triton.md)."""
