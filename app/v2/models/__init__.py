"""Pipelines as models of the protocol: metadata, configuration, repository, statistics."""
