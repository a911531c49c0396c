"""`penstock` and `python -m penstock`: the command line."""

import sys

from penstock.app.cli.signals import hold_signals_back, restore_ctrl_c


def main() -> None:
    """Run the command line."""
    serves = sys.argv[1:2] == ["serve"]
    interruptible = hold_signals_back(serves)
    from penstock.app.cli.main import main as run

    if interruptible and not serves:
        restore_ctrl_c()
    run()


if __name__ == "__main__":
    main()
