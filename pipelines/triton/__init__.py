"""Triton's model repositories: each version of a model becomes the tables of a pipeline.

`folders.py` finds models, `reading.py` reads a configuration, `completion/` fills in what it leaves
out, `validate.py` and `fields/` refuse what can't be served, `translation/` makes the tables.
`read.py` does all of it for a folder, `override.py` with a configuration that a load brings along.
"""
