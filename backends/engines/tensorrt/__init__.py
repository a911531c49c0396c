"""TensorRT: engines are built from ONNX models, kept in files, and run.

Only engine.py and execution.py need a GPU.
"""
