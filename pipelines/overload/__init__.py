"""Decide what happens under overload: who is admitted, in which order, in which batches.

Everything here is pure. It has no clock of its own: the caller says what time it is.
"""
