"""`penstock` and `python -m penstock`: the command line."""

import signal
import sys


def main() -> None:
    """Run the command line.

    `penstock serve` handles SIGHUP and SIGUSR1, which end a process otherwise. Until it does, half
    a second of imports later, they are held back. Ctrl-C ends the process at once during these
    imports, and `penstock serve` until its server handles it: a KeyboardInterrupt would print the
    traceback of whatever was being imported.
    """
    serves = sys.argv[1:2] == ["serve"]
    if serves and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from penstock.app.cli.main import main as run

    if interruptible and not serves:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
