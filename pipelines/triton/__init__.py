"""Triton's model repositories: each model becomes the tables of a pipeline."""
