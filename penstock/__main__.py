"""`python -m penstock`: the command line."""

from penstock.app.cli import main

main()
