"""Run Triton's Python models: `model.py` with a class TritonPythonModel."""
