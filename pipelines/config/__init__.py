"""Turn a file into a checked configuration. Nothing here knows about running one."""
