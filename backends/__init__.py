"""Backends: the operators and engines that nodes run on executor threads. No asyncio, no HTTP."""
