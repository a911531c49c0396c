"""The treatment of each field of a Triton model configuration."""
