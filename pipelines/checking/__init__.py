"""`penstock check`: what would go wrong with a pipeline, found without running it."""
