"""The last requests, and why each took the time that it took."""
