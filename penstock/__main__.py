"""`penstock` and `python -m penstock`: the command line."""

import signal
import sys


def main() -> None:
    """Run the command line.

    `penstock serve` handles SIGHUP and SIGUSR1, which end a process otherwise. Until it does, half
    a second of imports later, they are held back.
    """
    if sys.argv[1:2] == ["serve"] and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    from penstock.app.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
