"""Text from anywhere, made fit to be written: `encodable`."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Return `text` with each lone surrogate written as an escape (`\\udcff`).

    A file name that isn't UTF-8 brings surrogates along (PEP 383); UTF-8, and so JSON, has no form
    for them.
    """
    return text.encode("utf-8", "backslashreplace").decode()
