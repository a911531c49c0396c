"""What is done with each field of a Triton model configuration."""
