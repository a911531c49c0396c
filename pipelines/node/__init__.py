"""Run one node: its queue, its scheduler and its executors."""
