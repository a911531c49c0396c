"""Read backend expressions and find the classes and filters they name."""
