"""The face for threads: `pipe`, its calls, and the thread that runs their loop."""
