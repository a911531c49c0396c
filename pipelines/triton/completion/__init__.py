"""Completes a ModelConfig that leaves things out, as Triton does."""
