"""Turn a pipeline file into a checked configuration. Nothing here knows about running one."""
