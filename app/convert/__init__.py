"""`penstock convert`: models of other servers as pipeline files, pipelines as Triton models."""
