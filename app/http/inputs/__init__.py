"""The inputs of a pipeline: what it declares, and how a request's body becomes the item."""
