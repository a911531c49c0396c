"""Nodes that run other nodes: fan-out, Python logic, loops."""
