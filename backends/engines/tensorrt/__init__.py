"""TensorRT: engines built from ONNX, kept, and run. `engine.py` has the backend; all else works without a GPU."""
