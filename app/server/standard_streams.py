"""The descriptors 0, 1 and 2 of a server's process."""

from __future__ import annotations

import os
import sys

LAST_STANDARD_DESCRIPTOR = 2
"""That of stderr. stdin and stdout are 0 and 1."""


def open_standard_streams() -> None:
    """Open the null device as stdin, stdout and stderr where they are closed.

    Otherwise a descriptor of the loop takes their number, and libuv aborts when it closes that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD_DESCRIPTOR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(LAST_STANDARD_DESCRIPTOR, "w", closefd=False)
