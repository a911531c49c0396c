"""The infer route: read a request, run it, write its answer."""
