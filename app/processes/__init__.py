"""Serving with several processes: fronts, one process of models, and the parent of them all."""
