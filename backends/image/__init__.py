"""Image backends: decode, resize, crop, pad and convert, on NumPy arrays or torch tensors."""
