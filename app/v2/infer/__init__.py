"""Read an infer request, run it, and write its answer."""
