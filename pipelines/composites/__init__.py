"""Nodes that wait for other nodes: fan-out and Python logic."""
