"""Run a backend in a child process."""
