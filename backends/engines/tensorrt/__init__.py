"""TensorRT: engines are built from ONNX models, cached in files, and run.

Only engine.py and execution.py need a GPU.
"""
