"""What signals do until a command handles them. It imports nothing that takes time."""

import signal
import sys


def hold_signals_back(serves: bool) -> bool:
    """Prepare for the imports of a command.

    `penstock serve` handles SIGHUP and SIGUSR1, which end a process otherwise. Until it does, half
    a second of imports later, they are held back. Ctrl-C ends the process at once: a
    KeyboardInterrupt would print the traceback of whatever is being imported. Returns whether it
    did anything else before, so that `restore_ctrl_c` has to be called.
    """
    if serves and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return interruptible


def restore_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, for commands that handle it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
