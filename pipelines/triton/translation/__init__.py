"""Makes the tables of a pipeline of a completed ModelConfig: a module for each backend and part."""
