"""The interface for threads: `pipe`, its calls, and the thread that runs their event loop."""
