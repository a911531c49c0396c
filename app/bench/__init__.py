"""Generate load, measure a server or a pipeline under it, and verify its answers."""
