"""Sequences of a pipeline: the order of their steps, their places, and how they end."""
