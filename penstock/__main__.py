"""`python -m penstock`: the command line."""

from penstock.app.cli.main import main

main()
