"""Image backends on torch tensors, on the CPU or a GPU."""
