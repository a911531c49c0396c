"""What an executor needs on a GPU: streams, buffers, graphs, and the order of work."""
