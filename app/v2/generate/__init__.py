"""Triton's generate extension: a request and its answers are plain JSON objects."""
