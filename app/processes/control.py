"""The messages of the control sockets, between the parent process and its children.

Each message is a tuple that begins with one of `Control`; `Packets` carries it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import penstock

CONTROL_DESCRIPTOR = 3
"""A child finds its control socket at this descriptor, the first after stderr."""

MODELS = "models"


class Control:
    """The kinds of messages, with what follows them. Descriptors go beside a message.

    They are plain numbers: `marshal` writes no enumeration.
    """

    # from the parent to a front process
    CONNECTION: Final = 1
    """A descriptor: an accepted connection. The front answers TAKEN before it reads from it."""
    LISTEN: Final = 2
    """Descriptors of listening sockets, to accept from until RETIRE or END."""

    # from the parent to the model process
    ADDRESS: Final = 3
    """The address of the first listener, as `getsockname` returns it, for the log."""
    GRPC: Final = 4
    """Descriptors of listening sockets, to serve gRPC at until RETIRE, DRAIN or END."""
    PROCESSES: Final = 5
    """A list of (name, process id, restarts): all processes of this server."""

    # from the parent to both
    LINK: Final = 6
    """A number and a descriptor: one end of the link between a front and the model process. A front
    gets a serial number; the model process that of the front.
    """
    RETIRE: Final = 7
    """Seconds: a newer process takes over. Clients lose nothing. A front ends once its last
    connection has; the model process ends its gRPC connections, and waits for END.
    """
    DRAIN: Final = 8
    """The server ends. The model process finishes its requests, then sends DRAINED."""
    END: Final = 9
    """Seconds: close everything, and exit with 0 in that time."""
    REPORT: Final = 10
    """Write a report to the log."""

    # from a front process to the parent
    LINKED: Final = 11
    """The serial number of a link over which the model process has answered."""
    PREPARED: Final = 19
    """The serial number of a link whose model process has loaded its pipelines: their front nodes
    are loaded here.
    """
    TAKEN: Final = 12
    """A number of connections that have arrived."""
    CLOSED: Final = 13
    """A number of these connections that have ended."""

    # from the model process to the parent
    DRAINED: Final = 14
    """No request is left."""

    READ: Final = 18
    """The files of the pipelines are fine. Loading begins."""

    # from both to the parent
    READY: Final = 15
    """A front takes connections; the model process has loaded its pipelines. The latter adds a
    dictionary: those that it had to leave out, with the reasons.
    """
    FAILED: Final = 16
    """Why the process can't start, as a text, which the parent logs. It exits with 1."""
    PROBLEMS: Final = 17
    """The same for what is wrong in files: a list of texts, which the parent prints as lines."""


class Role(NamedTuple):
    """A child's place: front `number` (1, 2, …), or 0 for the model process."""

    number: int

    def __str__(self) -> str:
        return f"front {self.number}" if self.number else MODELS

    @property
    def option(self) -> str:
        """Itself as the command line of a child names it, with the release of its parent."""
        return f"{f'front:{self.number}' if self.number else MODELS}@{penstock.__version__}"


def role_of(option: str) -> Role:
    """Return the role that a command line names.

    Raises ValueError for another text, and for a parent of another release, whose messages may be
    others.
    """
    name, _, release = option.partition("@")
    kind, _, number = name.partition(":")
    if name != MODELS and not (kind == "front" and number.isdecimal() and int(number)):
        raise ValueError(f"{option!r} names no process: expected {MODELS} or front:1, a release")
    if release != penstock.__version__:
        raise ValueError(
            f"the server runs Penstock {release}, and this is {penstock.__version__}: expected the "
            "same, so restart the server instead of reloading it"
        )
    return Role(0 if name == MODELS else int(number))
