"""Traces of requests: which are traced, and where what is known of them goes."""
