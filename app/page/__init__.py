"""The page at `/`, where a person tries and watches the pipelines."""
