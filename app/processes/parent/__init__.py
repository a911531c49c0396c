"""The parent process: starts, watches, restarts and replaces the others, and serves nothing."""
