"""Operators on items: composition, control flow, keys, classification."""
