"""Text from anywhere, made fit to be written.

`encodable`, `escape`, `marked`, `message_of`, `name_of`, `repr_of`.
"""

from __future__ import annotations

import re

# Control characters (line ends, terminal sequences), Unicode's line ends, characters that reverse
# the direction of text, lone surrogates.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def encodable(text: str) -> str:
    """Return `text` with each lone surrogate written as an escape (`\\udcff`).

    A file name that isn't UTF-8 brings surrogates along (PEP 383); UTF-8, and so JSON, has no form
    for them.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def escape(text: str) -> str:
    """Return `text` on one line, with `\\n` for a line end, so that it can't forge another line."""
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def marked(traceback: str) -> str:
    """Return the lines of a traceback, to follow a line of a log.

    Each is marked by `|`, because the text of the exception may be a client's and look like a line.
    """
    return "".join(f"\n  | {escape(line)}" for line in traceback.split("\n"))


def message_of(error: object) -> str:
    """Return `str(error)`, or a stand-in if a user's own `__str__` raises.

    A failure must not hide the failure that it reports, so nothing that `__str__` raises gets out,
    KeyboardInterrupt and SystemExit neither.
    """
    try:
        return _plain(str(error))
    except BaseException:
        return "(its message can't be shown)"


def name_of(kind: type) -> str:
    """Return the name of a class, whatever its metaclass says."""
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


def repr_of(value: object) -> str:
    """Return `repr(value)`, or a stand-in if a user's own `__repr__` raises."""
    try:
        return _plain(repr(value))
    except BaseException:
        return f"<{name_of(type(value))} whose repr can't be shown>"


def _plain(text: str) -> str:
    """Return a `str` whose methods are Python's own: `str(error)` may be of a user's subclass."""
    return text if type(text) is str else str.__str__(text)
