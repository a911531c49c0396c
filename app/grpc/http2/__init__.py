"""HTTP/2 as gRPC uses it, for servers: frames, flow control, calls."""
