"""A front process: it holds connections, and has the model process answer their requests."""
