"""`penstock shadow`: serve beside a running Triton, compare the answers, and take over."""
