"""Pipelines on one event loop: configuration, queues, scheduling, and the way of each request."""
