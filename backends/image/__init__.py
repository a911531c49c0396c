"""Image backends: on OpenCV and NumPy here, on torch tensors in `tensor`."""
