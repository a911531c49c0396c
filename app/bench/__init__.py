"""Generate load, measure a server or a pipeline, and verify its answers."""
