"""Engines: backends that run a compiled model, by ONNX Runtime, torch or TensorRT."""
