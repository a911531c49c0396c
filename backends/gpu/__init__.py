"""The GPU for an executor: streams, buffers, graphs, and the order of work."""
