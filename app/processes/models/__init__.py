"""The model process: it runs all pipelines, for requests that front processes bring."""
