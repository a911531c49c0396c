"""OnnxTensor on GPUs: ONNX Runtime's CUDA and TensorRT execution providers."""
