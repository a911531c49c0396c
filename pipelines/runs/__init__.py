"""Lead one request through a pipeline, from admission to its answer."""
