"""The `penstock` command and its subcommands."""
